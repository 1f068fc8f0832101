"""Loads the torch-free table library and gives its functions their types. No logic."""

import ctypes
import os
import threading
from functools import cache

from herald import build
from herald.errors import BuildError

_u32, _i64, _u64, _ptr, _int = ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int


class ClaimSpec(ctypes.Structure):
    """What a job says of itself when it claims a row (struct herald_claim)."""

    _fields_ = (
        ("priority", _u32),
        ("device", _u32),
        ("pid", _u32),
        ("mps", _u32),
        ("target_ppm", _u32),
        ("reserved", _u32),
        ("owner", _u64),
        ("slo_ns", _i64),
        ("name", ctypes.c_char * 48),
    )


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "herald_table_layout": (ctypes.c_char_p, ()),
    "herald_table_bytes": (_u64, (_u64,)),
    "herald_table_initialise": (None, (_ptr, _u64, _u64)),
    "herald_lock": (_int, (_int, _int, _int)),
    "herald_lock_held": (_int, (_int, _int)),
    "herald_unlock": (None, (_int, _int)),
    "herald_load32": (_u32, (_ptr,)),
    "herald_store32": (None, (_ptr, _u32)),
    "herald_load64": (_u64, (_ptr,)),
    "herald_store64": (None, (_ptr, _u64)),
    "herald_table_device": (_int, (_ptr, ctypes.c_char_p)),
    "herald_table_claim": (_int, (_ptr, _int, ctypes.POINTER(ClaimSpec))),
    "herald_table_release": (None, (_ptr, _int, _int)),
    "herald_table_reap": (_u64, (_ptr, _int, _u64, _i64)),
    "herald_gate_close": (None, (_ptr, _u32, _u32, _i64)),
    "herald_gate_open": (None, (_ptr, _u32, _u32)),
    "herald_gate_wait": (_int, (_ptr, _u32, _i64)),
    "herald_table_plan": (None, (_ptr, _int, _u32, _i64, _u32)),
    "herald_bucket": (_u32, (_i64,)),
}


def declare(library: ctypes.CDLL, signatures: dict[str, tuple[object, tuple[object, ...]]]) -> ctypes.CDLL:
    """Give each named function of a library its result and argument types."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def load(library: build.Library) -> ctypes.CDLL:
    """Build if needed and load. A file that does not load (a broken disk, a copied cache) is rebuilt once."""
    path = build.ensure(library)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)
    try:
        return ctypes.CDLL(str(build.ensure(library)))
    except OSError as e:
        raise BuildError(f"{library.title} was built but does not load: {e}") from e


_load_lock = threading.Lock()


def table() -> ctypes.CDLL:
    """The table library, built and loaded at most once per process."""
    with _load_lock:
        return _table()


@cache
def _table() -> ctypes.CDLL:
    return declare(load(build.table_library()), _SIGNATURES)


class _Token:
    """A random identity of this process, renewed in a forked child, which owns none of its parent's rows."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.value = int.from_bytes(os.urandom(8)) | 1


_token = _Token()


def process_token() -> int:
    """The identity under which this process owns rows (64 bits, never 0)."""
    return _token.value
