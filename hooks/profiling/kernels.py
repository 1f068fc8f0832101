"""The pass under torch's profiler, for what only it can see: the kernels. On CUDA alone."""

import logging
from typing import TYPE_CHECKING, Self

import torch
from typing_extensions import override

from herald.hooks import kernel_facts
from herald.hooks.profiling.stages import Stage

if TYPE_CHECKING:
    from herald.profiles import KernelFacts

_log = logging.getLogger("herald")


class KernelTrace(Stage):
    """torch's profiler is on."""

    def __init__(self, num_iterations: int, device: torch.device) -> None:
        super().__init__(num_iterations, device)
        self._tracer: torch.profiler.profile | None = None
        self.found: dict[str, tuple[KernelFacts, ...]] = {}  # by `kernel_facts.joinable` signature

    @override
    def __enter__(self) -> Self:
        super().__enter__()
        self._tracer = self._stack.enter_context(kernel_facts.tracer())
        return self

    @override
    def finish(self) -> None:
        assert self._tracer is not None
        try:
            self.found = kernel_facts.of_trace(kernel_facts.document_of(self._tracer))
        except kernel_facts.TraceError as e:
            _log.warning("the profile is without kernels, and device times are with launch gaps: %s", e)
