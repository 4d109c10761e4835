"""malloc tuning: keep freed memory in the process in place of returning it to the system."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# From glibc's malloc.h; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1  # as M_TRIM_THRESHOLD
# Blocks from 32 MiB on are otherwise mapped whatever was freed before; a heap of a thread other than the main one holds
# up to 64 MiB.
_TRIAL = 33 << 20


def keep_freed_memory() -> bool:
    """Have the C library keep the memory that this process frees, for what it allocates next.

    Each iteration frees and allocates again: gradients (``zero_grad()``), what the forward pass keeps for the backward
    pass, temporaries. glibc returns large blocks to the system when they are freed; then the system hands out fresh
    pages and zeroes each when it is first written to, which takes longer than the write. After this call nothing is
    returned.

    It reaches beyond the optimizers: it sets two parameters of ``malloc`` (``mallopt(3)``: ``M_MMAP_MAX`` to 0,
    ``M_TRIM_THRESHOLD`` to never) for the whole process and all of its libraries, until it ends; child processes made
    by ``fork`` inherit them. The process then stays as large as it ever was, and may become larger than it would have,
    since free blocks lie between others. ``ctypes.CDLL(None).malloc_trim(0)`` returns what is free at that moment.
    Call it before the first iteration; blocks allocated earlier stay what they are. No result depends on it.

    Returns:
        Whether this is how memory is allocated from now on. False, and nothing is different, where ``malloc`` is not
        glibc's: on macOS, Windows and musl, and with another allocator preloaded, such as jemalloc.

    Example:
        >>> import fusedoptim as optim
        >>> optim.keep_freed_memory()  # doctest: +SKIP
        True
    """
    libc = _glibc()
    if libc is None:
        return False
    accepted = libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return bool(accepted) and _keeps_large_blocks(libc)


def _glibc() -> Any:
    """The process's C library, if it is glibc."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _keeps_large_blocks(libc: Any) -> bool:
    """Whether a large block comes from glibc's heap: not so with another ``malloc`` in the place of glibc's."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    before = _bytes_in_heap(libc)
    block = libc.malloc(_TRIAL)  # its pages are not touched, so it takes addresses only
    grown = (_bytes_in_heap(libc) - before) % (1 << 32)
    libc.free(block)
    return bool(block) and grown >= _TRIAL - (1 << 20)  # what other threads free meanwhile is allowed for


def _bytes_in_heap(libc: Any) -> int:
    """What glibc's ``malloc`` has handed out, blocks mapped by themselves not counted, modulo 2^32."""
    modern = hasattr(libc, "mallinfo2")  # glibc 2.33; before, the fields were int

    class Usage(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t if modern else ctypes.c_int)
            for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                         "keepcost")
        ]  # fmt: skip

    ask = libc.mallinfo2 if modern else libc.mallinfo
    ask.restype = Usage
    return int(ask().uordblks) % (1 << 32)
