"""How the C library's allocator treats what the network frees."""

import ctypes
from contextlib import suppress

#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Bytes that are kept, and the largest blocks that may be: glibc allows no more.
KEPT, LARGEST = 64 * 2**20, 32 * 2**20


def keep_freed_memory() -> None:
    """Keeps up to `KEPT` bytes of freed memory for what is allocated next, in this whole process.

    glibc returns it to the system at once otherwise, and gets it back page by page: that makes up
    an eighth of the time of a small picture. Does nothing where the C library is another one.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGEST)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
