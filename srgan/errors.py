"""Everything this package raises on purpose.

SRGANError
├── ImageError     the image can't be read, enlarged or written
├── WeightsError   the weights can't be found, read, trusted or written
├── SettingError   an option or a variable of the environment is senseless; a ValueError too
└── Cancelled      the caller asked to stop
"""


class SRGANError(Exception):
    """Base of all errors of this package; its text is fit to be shown to a user."""


class ImageError(SRGANError):
    """The image can't be read, enlarged or written."""


class WeightsError(SRGANError):
    """The weights can't be found, read, trusted or written."""


class SettingError(SRGANError, ValueError):
    """An option or a variable of the environment has a senseless value."""


class Cancelled(SRGANError):
    """The caller stopped the work."""
