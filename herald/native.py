"""Loads the torch-free table library and gives its functions their types. No logic."""

import ctypes
import os
import threading
from collections.abc import Callable

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
        ("weight_ppm", _u32),
        ("floor_ppm", _u32),
        ("reserved", _u32),
        ("owner", _u64),
        ("slo_ns", _i64),
        ("ttft_slo_ns", _i64),
        ("tpot_slo_ns", _i64),
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
    "herald_table_plan": (None, (_ptr, _int, _u32, _i64, _u32, _i64, _u32, _u32, _i64)),
    "herald_table_feasibility": (None, (_ptr, _int, _u32, _u32, _i64)),
    "herald_table_trainer_plan": (None, (_ptr, _int, _u32, _u32, _u32, _i64)),
    "herald_lead": (_i64, (_i64, _i64, _u32)),
    "herald_bucket": (_u32, (_i64,)),
}


def declare(library: ctypes.CDLL, signatures: dict[str, tuple[object, tuple[object, ...]]]) -> ctypes.CDLL:
    """Give each named function of a library its result and argument types."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name, None)
        if function is None:
            raise BuildError(f"{library._name} lacks {name}: it is not what this Herald built; delete it")
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


class Once:
    """A library that is loaded at the first call; later calls take no lock, since one comes with every request."""

    def __init__(self, load: Callable[[], ctypes.CDLL]) -> None:
        self._load = load
        self._loaded: ctypes.CDLL | None = None
        self.reset_lock()
        os.register_at_fork(after_in_child=self.reset_lock)

    def reset_lock(self) -> None:
        """In a forked child, the thread that held the lock does not exist."""
        self._lock = threading.Lock()

    def __call__(self) -> ctypes.CDLL:
        """The library. Raises BuildError."""
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._loaded = self._load()
        return self._loaded

    def forget(self) -> None:
        """Load anew at the next call."""
        self._loaded = None


table = Once(lambda: declare(load(build.table_library()), _SIGNATURES))  # the table library


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
