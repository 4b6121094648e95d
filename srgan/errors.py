"""Everything this package raises on purpose.

SRGANError
├── ImageError     the image can't be read or enlarged; the message says why and what to do
├── WeightsError   the weights can't be found, read or trusted
└── Cancelled      the caller asked to stop
"""


class SRGANError(Exception):
    """Base of all errors of this package; its text is fit to be shown to a user."""


class ImageError(SRGANError):
    """The image can't be read or enlarged."""


class WeightsError(SRGANError):
    """The weights can't be found, read or trusted."""


class Cancelled(SRGANError):
    """The caller stopped the work."""
