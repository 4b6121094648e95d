"""How the C library's allocator treats what has been freed."""

import ctypes
from contextlib import suppress

#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Bytes that are kept, and the largest blocks that may be: glibc allows no more.
KEPT, LARGEST = 128 * 2**20, 32 * 2**20


def keep_freed_memory() -> None:
    """Keeps up to `KEPT` bytes of freed memory for what is allocated next, in this whole process.

    glibc returns it to the system at once otherwise, and gets it back page by page: that makes up
    an eighth of the time of a small picture. All threads share it: each would keep its own freed
    memory otherwise, and a server's worker threads, which take turns, so grow for hours. Does
    nothing where the C library is another one.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, LARGEST)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
