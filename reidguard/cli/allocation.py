"""Memory allocation of a process that trains: freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h, and a setting for each.
SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no block has pages of its own, which go back to the system when freed
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: what is free at the end of the heap stays there
    -2: 2**26,  # M_TOP_PAD: the heap grows by 64 MiB
}


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, where it runs on glibc.

    A training step on the CPU allocates and frees hundreds of large tensors. By default glibc maps
    each anew, and the kernel clears every page of it. The process does not grow beyond its peak,
    but keeps that until it ends.

    Returns:
        Whether it does: False with another C library, and where an environment variable such as
        ``MALLOC_TRIM_THRESHOLD_`` or ``LD_PRELOAD`` says how memory is allocated.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "LD_PRELOAD"]
    if platform.libc_ver()[0] != "glibc" or chosen or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(name, value) == 1 for name, value in SETTINGS.items())
