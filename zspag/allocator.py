"""The C library's memory, kept by the process for the next pass instead of being handed back after every layer.

A convolution's output of several MB is one block of the system's each time: fetched zeroed page by page, used once,
given back. On two cores a forward and backward pass of 512 images took twice as long per image as one of 64 for this
reason alone (``zspag bench`` measures it). With the two settings below the C library serves such blocks from what the
process already has; the process then keeps its largest size until it ends.

Invariant: called by programs of this package, for their own process; importing the package changes nothing, since a
host program may want its memory back.
"""

import ctypes
import sys

# From glibc's malloc.h: options of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; return whether the C library knows the settings (glibc does)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
