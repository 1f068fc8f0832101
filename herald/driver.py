"""What NVIDIA's driver says of this machine, asked through libcuda alone: no torch, no CUDA context.

Only `herald doctor` and `herald run` ask; jobs talk to the driver through the native op hook.
"""

import ctypes
from dataclasses import dataclass

from herald.errors import HeraldError

_HOST_REGISTER_SUPPORTED = 99  # CUdevice_attribute
_NAME_BYTES = 256


class NoDriverError(HeraldError):
    """There is no usable CUDA driver or no GPU; the message says which."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    name: str
    can_register_host_memory: bool  # the gate words lie in host memory


@dataclass(frozen=True)
class Driver:
    """The driver and its GPUs, at least one."""

    version: str  # the newest CUDA it supports, such as "13.0"
    has_stream_wait: bool  # cuStreamWaitValue32 and cuStreamWriteValue32 in the form of CUDA 11.7 and later
    gpus: tuple[Gpu, ...]


def probe(library: str = "libcuda.so.1") -> Driver:
    """Ask the driver. Raises NoDriverError."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise NoDriverError(f"{library} cannot be loaded") from error
    _call(cuda, "cuInit", 0)
    number, count = ctypes.c_int(), ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(number))
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise NoDriverError("the driver shows no GPU (CUDA_VISIBLE_DEVICES?)")
    return Driver(
        version=f"{number.value // 1000}.{number.value % 1000 // 10}",
        has_stream_wait=hasattr(cuda, "cuStreamWaitValue32_v2") and hasattr(cuda, "cuStreamWriteValue32_v2"),
        gpus=tuple(_gpu(cuda, index) for index in range(count.value)),
    )


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, can_register = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(cuda, "cuDeviceGetAttribute", ctypes.byref(can_register), _HOST_REGISTER_SUPPORTED, device)
    return Gpu(index, name.value.decode(errors="replace"), bool(can_register.value))


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(cuda, function)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        reason = text.value.decode(errors="replace") if text.value else f"CUDA error {code}"
        raise NoDriverError(f"{function} says: {reason}")
