"""The memory of a process: kept for the next pass instead of being handed back after every layer, and its peak.

A convolution's output of several MB is one block of the system's each time: fetched zeroed page by page, used once,
given back. On two cores a forward and backward pass of 512 images took twice as long per image as one of 64 for this
reason alone (``make bench`` measures it). With the two settings below the C library serves such blocks from what the
process already has; the process then keeps its largest size until it ends.

Invariant: memory is kept by programs of this package, for their own process; importing the package changes nothing,
since a host program may want its memory back.
"""

import ctypes
import re
import resource
import sys
from pathlib import Path

# From glibc's malloc.h: options of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of getrusage: bytes on macOS, KiB on Linux


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; return whether the C library knows the settings (glibc does)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_bytes(*, anew: bool = False) -> int:
    """Return the most memory that this process has had so far.

    Args:
        anew: Forget the past first, where the system can (Linux): importing torch takes more than many a stage.

    Note:
        After fork and exec Linux starts ``ru_maxrss`` at the parent's peak, so the kernel's own high-water mark, which
        starts at zero, is read where it exists.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        if anew:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8")):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
