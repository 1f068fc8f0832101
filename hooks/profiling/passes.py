"""The passes of one measurement, in their order, and the profile that follows from them."""

import logging
from collections.abc import Iterator

import torch
from torch import nn

from herald.durations import format_ns
from herald.hooks import learned
from herald.hooks.profiling.assembly import Passes, Place, assemble
from herald.hooks.profiling.kernels import KernelTrace
from herald.hooks.profiling.module_paths import ModuleMarks
from herald.hooks.profiling.stages import HostTimes, Recorded, Schedule, Stage, WallTimes, WarmUp
from herald.profiles import Profile

_log = logging.getLogger("herald")
_SETTLING = 3  # recorded iterations after which the recorder knows, on CUDA, which ops have no work of their own
_IN_DETAIL = 2  # the first also warms up what the marks of modules changed (torch.compile looks at module hooks)
_TRACED = 3
_DISTURBED = 1.3  # by so much all iterations of one pass took longer than all of another that measured the same


class Measurement:
    """One measurement of a workload on a device: a schedule to run, then a profile to take."""

    def __init__(self, cuda_index: int | None, *, warmup: int, iterations: int, model: nn.Module | None = None) -> None:
        device = torch.device("cpu") if cuda_index is None else torch.device("cuda", cuda_index)
        self._model = model
        self._wall = WallTimes(iterations, device)
        self._host = HostTimes(iterations, device)
        self._timed = Recorded(iterations, device)
        self._detail = Recorded(_IN_DETAIL, device, ModuleMarks(model))
        self._kernels = KernelTrace(_TRACED if cuda_index is not None else 0, device)
        settling = Recorded(_SETTLING if cuda_index is not None else 1, device)
        stages: list[Stage] = [WarmUp(warmup, device), self._wall, self._host]
        self.schedule = Schedule([*stages, settling, self._timed, self._detail, self._kernels])

    def profile(self, place: Place) -> Profile:
        """The profile, once the schedule is done. Raises ProfileError: no op was seen."""
        self._warn_of_others()
        passes = Passes(
            timed=self._timed.recording,
            timed_bounds_ns=self._timed.bounds_ns,
            detail=self._detail.recording,
            detail_bounds_ns=self._detail.bounds_ns,
            wall_ns=self._wall.median_ns,
            host_ns=self._host.median_ns,
            kernels=self._kernels.found,
        )
        return assemble(passes, place, _parameters(self._model))

    def _warn_of_others(self) -> None:
        """On a CPU an iteration takes as long as it keeps the host, unless something else runs there."""
        wall_ns, host_ns = self._wall.times_ns, self._host.times_ns
        gap = max(min(wall_ns) / max(host_ns), min(host_ns) / max(wall_ns))
        if self._wall.device.type == "cpu" and gap > _DISTURBED:
            _log.warning(
                "an iteration took %s in one pass and %s in another: its work changes, or something else uses this "
                "machine, and is in the times; profile alone, with more iterations",
                format_ns(self._wall.median_ns),
                format_ns(self._host.median_ns),
            )


def place_of(cuda_index: int | None, device: str, workload: str) -> Place:
    """Where this process profiles."""
    sms = None if cuda_index is None else torch.cuda.get_device_properties(cuda_index).multi_processor_count
    driver = None if cuda_index is None else _driver_version()
    return Place(device, driver, torch.__version__, learned.now(), sms, workload)


def _driver_version() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # a container without the management library
        return None


def _parameters(model: nn.Module | None) -> Iterator[str]:
    for name, parameter in model.named_parameters() if model is not None else ():
        yield f"{name} {tuple(parameter.shape)} {parameter.dtype}"
