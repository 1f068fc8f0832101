"""Announces device work that torch's dispatcher never does, so that the native hook sees it as an op like any other.

While a low-priority job is attached or a recording runs, the Python functions that launch such work are wrapped (which
ones: `herald.hooks.launch_points`; how: `herald.hooks.patches`). Decides nothing: what an announced event costs and
whether it waits is for the native hook.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from herald.hooks import launch_points, native
from herald.hooks.launch_points import Announcer, Begin, End
from herald.hooks.patches import Patches

if TYPE_CHECKING:
    import torch


class announce:
    """Tell Herald of device work that it cannot see: a C++ extension's kernel, CuPy, a library called by ctypes.

        with announce("mylib::fft", x):
            mylib.fft(x.data_ptr(), ...)

    ``name``: what the work is called in profiles; the same name and shapes are expected to take the same time.
    ``tensors``: what it works on; the first says which device. The work must go to the current stream. Costs next
    to nothing unless a low-priority job is attached or a recording runs. Not inside torch.compile.
    """

    __slots__ = ("_begun", "_name", "_tensors")

    def __init__(self, name: str, *tensors: "torch.Tensor") -> None:
        self._name = (name if "::" in name else f"launch::{name}").encode()
        self._tensors = tensors
        self._begun = False

    def __enter__(self) -> Self:
        if _announcer.on:
            _announcer.begin(self._name, self._tensors)
            self._begun = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._begun:
            self._begun = False
            _announcer.end()


def start(gate: str | None = None) -> None:
    """Announce from now on, until as many calls of `stop`. ``gate``: which gate ops wait for, for a low-priority job.

    What cannot be announced is said once in the log.
    """
    _patches.start(gate)


def stop(gate: str | None = None) -> None:
    """Undo one `start` that had the same argument."""
    _patches.stop(gate)


@cache
def _native_functions() -> tuple[Begin, End]:
    """`begin` and `end` of csrc/launches.hpp, as builtin functions."""
    import torch

    make: Callable[..., Any] = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
        ("PyCFunction_NewEx", ctypes.pythonapi)
    )
    method = native.hook().herald_launch_method
    tensor_types = (torch.Tensor, torch.nn.Parameter)
    return make(method(0), tensor_types, None), make(method(1), (), None)


_announcer = Announcer()
_patches = Patches(_announcer, launch_points.POINTS, _native_functions)
os.register_at_fork(after_in_child=_patches.forget)
