"""The memory that a training step frees, kept for the next one."""

import ctypes

# glibc's names for what can be set (malloc.h), and what it is set to: arrays of up to a gigabyte
# come from the heap, the heap is not given back, it grows by 64 MB, and all threads share it.
_SETTINGS = {
    -3: 1 << 30,  # M_MMAP_THRESHOLD
    -1: (1 << 31) - 1,  # M_TRIM_THRESHOLD
    -2: 64 << 20,  # M_TOP_PAD
    -8: 1,  # M_ARENA_MAX
}


def keep_freed_memory():
    """Tell the C library to keep what is freed.  -> whether it could be told (glibc alone can).

    Left to itself, it gives large arrays back to the system, and each new one is then mapped and
    cleared anew, a page at a time: in a compiled training step on two cores that was a quarter of
    the time, and NumPy and PyTorch pay it too.  Call it before the first large array is made.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all([mallopt(name, value) for name, value in _SETTINGS.items()])
