"""Settings that come from the environment."""

import os

from srgan.errors import SettingError


def whole_number(variable: str, default: int) -> int:
    """A setting above 0; the default where the variable is missing or empty.

    Raises:
        SettingError: it is something else.
    """
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) == 0:
        raise SettingError(f"{variable} must be a whole number above 0, got {text!r}")
    return int(text)
