"""The heap: glibc gives freed memory back to the system at once and faults it in again page by page, which costs a
tenth of the time of reading a prompt. Half a gibibyte is kept instead.
"""

from __future__ import annotations

import ctypes
import os

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # their numbers in malloc.h
LARGEST = 2**25  # bytes, the most that glibc takes from its heap instead of mapping them
KEPT = 2**29  # bytes that may lie free at its end
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def give_back() -> None:
    """Return to the system what the process has freed, where the C library can."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def keep_freed() -> bool:
    """Let the process keep what it frees from now on for its next tensors; whether it does. What it freed before is
    given back. Left alone where the user has set an allocator's variables, and where the C library has no such
    settings.
    """
    if any(name in os.environ for name in OWN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    give_back()
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
