"""Loads the op hook library for the torch in this process and gives its functions their types. No logic."""

import ctypes

from herald import build, native
from herald.errors import BuildError

_u32, _i32, _i64, _u64 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64
_ptr, _int, _size, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p

ERROR_BYTES = 512
TEXT_BYTES = 1024

_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "herald_hook_torch": (_text, ()),
    "herald_high_attach": (_int, (_ptr, _int, _u32, _u64, _int, _text, _size)),
    "herald_high_detach": (None, (_int,)),
    "herald_mark_serving": (None, ()),
    "herald_request_begin": (_i64, (_int, _i64, _i64)),
    "herald_request_end": (None, (_int, _i64)),
    "herald_low_attach": (_int, (_ptr, _int, _u32, _u64, ctypes.POINTER(_i32), _int, _int, _text, _size)),
    "herald_low_detach": (None, ()),
    "herald_costs_rule": (None, (_u32, _u32, _u64)),
    "herald_costs_set": (None, (_u64, _u32, _u64, _text)),
    "herald_costs_at": (
        _int,
        (
            _u64,
            ctypes.POINTER(_u64),
            ctypes.POINTER(_u32),
            ctypes.POINTER(_u32),
            ctypes.POINTER(_u32),
            ctypes.POINTER(_u64),
            _text,
            _size,
        ),
    ),
    "herald_costs_clear": (None, ()),
}


def _load() -> ctypes.CDLL:
    import torch

    library = native.declare(native.load(build.hook_library()), _SIGNATURES)
    built_for, running = library.herald_hook_torch().decode(), build.torch_identity(torch)
    if built_for != running:
        raise BuildError(
            f"the cached op hook was built for torch {built_for}, this is {running}: delete "
            f"{build.hook_library().path} and run `herald build`"
        )
    return library


hook = native.Once(_load)  # the hook library
