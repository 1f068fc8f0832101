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
    "herald_request_begin": (_i64, (_int, _i64, _i64, _i64, _i64)),
    "herald_request_end": (None, (_int, _i64, _i64)),
    "herald_request_step": (None, (_int, _i64)),
    "herald_first_token": (None, (_int, _i64)),
    "herald_queued": (None, (_int, _u32)),
    "herald_step_begin": (_i64, (_int, _u32, _i64)),
    "herald_step_end": (None, (_int, _i64)),
    "herald_close_at": (_i64, (_u32, ctypes.POINTER(_i64), ctypes.POINTER(_i64), _i64, _u32, _i64)),
    "herald_forward_begin": (None, (_int,)),
    "herald_forward_end": (None, (_int,)),
    "herald_checkpoint": (None, (_int, _u32)),
    "herald_checkpoints_changed": (None, (_int,)),
    "herald_observe": (None, (_int, _int)),
    "herald_progress_new": (_ptr, ()),
    "herald_progress_free": (None, (_ptr,)),
    "herald_progress_learn": (
        _i64,
        (_ptr, _u32, ctypes.POINTER(_i64), ctypes.POINTER(_u32), _i64, _i64, _u32, _i64),
    ),
    "herald_progress_bound": (_i64, (_ptr, _u32, _u32)),
    "herald_progress_expected": (_i64, (_ptr, _u32, _i64, _int)),
    "herald_low_attach": (_int, (_ptr, _int, _u32, _u64, ctypes.POINTER(_i32), _int, _int, _text, _size)),
    "herald_low_detach": (None, ()),
    "herald_low_capture_begin": (_int, ()),
    "herald_low_capture_end": (None, ()),
    "herald_low_step": (None, ()),
    "herald_low_standby": (None, (_int,)),
    "herald_costs_rule": (None, (_u32, _u32, _u64)),
    "herald_costs_set": (None, (_u64, _u32, _u64, _u32, _text)),
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
    "herald_launch_method": (_ptr, (_int,)),
    "herald_names_wrapper": (None, (_text,)),
    "herald_listen_idly": (None, (_int,)),
    "herald_record_start": (_u64, (_int, _int, _text, _size)),
    "herald_record_stop": (None, ()),
    "herald_record_mark_begin": (None, (_text,)),
    "herald_record_mark_end": (None, ()),
    "herald_record_finish": (_int, (_u64,)),
    "herald_record_tapes": (_u32, ()),
    "herald_record_tape": (None, (_u32, *(ctypes.POINTER(t) for t in (_ptr, _u64, _ptr, _u64)))),
    "herald_record_signature": (_int, (_u64, ctypes.POINTER(_u64), ctypes.POINTER(_u64), _text, _size)),
    "herald_record_args": (_text, (_u64,)),
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
    for name in wrappers():
        library.herald_names_wrapper(name.encode())
    return library


def wrappers() -> list[str]:
    """Names of ops that only call other ops: no overload has a kernel of its own.

    torch's dispatcher knows: such an op is registered as CompositeImplicitAutograd and nothing else.
    """
    import torch

    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    composite: dict[str, bool] = {}
    for overload in torch._C._dispatch_get_all_op_names():
        name, _, variant = overload.partition(".")
        # Variants that write into a given tensor are generated for all ops; they call the others and copy.
        if composite.get(name, True) and not variant.endswith("out"):
            composite[name] = has_kernel(overload, "CompositeImplicitAutograd") and not any(
                has_kernel(overload, key) for key in _KERNEL_KEYS
            )
    return [name for name, only_calls in composite.items() if only_calls]


_KERNEL_KEYS = ("CPU", "CUDA", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


hook = native.Once(_load)  # the hook library
