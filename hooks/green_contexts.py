"""Streams that run on a share of a GPU's SMs: green contexts, asked of NVIDIA's driver alone.

A green context is made once per share (1 to 3 ms) and kept until the process ends: streams and allocations of other
libraries may refer to it. Source: CUDA Driver API, "Green Contexts"; the structure's layout is that of CUDA 12.4 to 13.
"""

import ctypes
from functools import cache

from herald.errors import HeraldError

_RESOURCE_BYTES = 144  # sizeof(CUdevResource) as versions without a suffix in the symbol's name have it
_SM_COUNT_OFFSET = 96  # of CUdevResource.sm.smCount
_SLACK_BYTES = 256  # should a driver write a longer one
_TYPE_SM = 1  # CU_DEV_RESOURCE_TYPE_SM
_DEFAULT_STREAM = 1  # CU_GREEN_CTX_DEFAULT_STREAM: required
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: required


class NoShareError(HeraldError):
    """This driver or GPU cannot give a stream a share of the SMs; the message says why."""


@cache
def sm_total(cuda_index: int) -> int:
    """SMs that this process may use of a GPU (under an MPS percentage: fewer than it has). Raises NoShareError."""
    return _count(_all_sms(cuda_index))


@cache
def make_stream(cuda_index: int, sm_count: int, priority: int = 0) -> tuple[int, int]:
    """(stream handle, SMs that it got) for at most ``sm_count`` SMs of a GPU; the same stream for the same arguments.

    SMs come in groups (of 8 on Hopper): what is left aside is rounded up. Raises NoShareError.
    """
    everything = _all_sms(cuda_index)
    aside = _count(everything) - sm_count
    if not 0 < aside < _count(everything):
        raise NoShareError(f"{sm_count} of {_count(everything)} SMs is not a share")
    rest, share = _resource(), _resource()
    num_groups = ctypes.c_uint(1)
    _call("cuDevSmResourceSplitByCount", rest, ctypes.byref(num_groups), everything, share, 0, aside)
    if _count(share) == 0:
        raise NoShareError(f"{sm_count} SMs are fewer than a group of this GPU has")
    description, context, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuDevResourceGenerateDesc", ctypes.byref(description), share, 1)
    _call("cuGreenCtxCreate", ctypes.byref(context), description, _device(cuda_index), _DEFAULT_STREAM)
    _call("cuGreenCtxStreamCreate", ctypes.byref(stream), context, _NON_BLOCKING, priority)
    return stream.value or 0, _count(share)


def _all_sms(cuda_index: int) -> "ctypes.Array[ctypes.c_char]":
    resource = _resource()
    _call("cuDeviceGetDevResource", _device(cuda_index), resource, _TYPE_SM)
    return resource


def _device(cuda_index: int) -> ctypes.c_int:
    device = ctypes.c_int()
    _call("cuDeviceGet", ctypes.byref(device), cuda_index)
    return device


def _resource() -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(_RESOURCE_BYTES + _SLACK_BYTES)


def _count(resource: "ctypes.Array[ctypes.c_char]") -> int:
    return int.from_bytes(resource.raw[_SM_COUNT_OFFSET : _SM_COUNT_OFFSET + 4], "little")


def _call(name: str, *arguments: object) -> None:
    function = getattr(_driver(), name, None)
    if function is None:
        raise NoShareError(f"the driver lacks {name}: SM shares need CUDA 12.4 or later")
    code = function(*arguments)
    if code != 0:
        raise NoShareError(f"{name} failed with CUDA error {code}")


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoShareError("libcuda.so.1 (the NVIDIA driver) does not load") from error
