"""A low-priority job: best-effort training, whose ops wait at the gate and keep to a share of the SMs."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from typing_extensions import override

from herald.errors import AttachError
from herald.hooks import classes, devices, launches, learned, native, sm_share
from herald.hooks.devices import JobDevice
from herald.hooks.job import AttachedJob, attached_jobs
from herald.native import process_token
from herald.table import Table

_log = logging.getLogger("herald")


class LowJob(AttachedJob):
    """Best-effort training: its heavy ops wait while the gate of their device is closed."""

    priority = "low"
    again: Callable[[], object] | None = None  # of a stand-in, whose place the program's own job takes: attach it anew

    def __init__(
        self, table: Table, device: JobDevice, *, name: str, light_percent: float, weight: float, floor: float
    ) -> None:
        self._light_percent = light_percent
        super().__init__(table, device, name=name, weight=weight, floor=floor)

    def _check_neighbours(self) -> None:
        super()._check_neighbours()
        for other in self._neighbours():
            if other.priority == "low":
                raise AttachError(
                    f"this process already has the low-priority job {other.name!r}: the op hook sees the whole "
                    "process, so that one is enough; detach it first"
                )

    def _start(self) -> None:
        error = ctypes.create_string_buffer(native.ERROR_BYTES)
        slots, num_cuda = self._device_slots()
        # Without MPS the contexts of a GPU take turns, so nothing of this job runs beside a request anyway.
        all_heavy = self._light_percent == 0 or (self._device.is_cuda and not self._device.mps)
        classes.teach(self._gpu_model(), self._light_percent)
        ok = native.hook().herald_low_attach(
            self._table.address,
            self._table.lock_fd,
            self._row,
            process_token(),
            (ctypes.c_int32 * len(slots))(*slots),
            num_cuda,
            all_heavy,
            error,
            native.ERROR_BYTES,
        )
        if not ok:
            raise AttachError(f"ops cannot be gated: {error.value.decode()}; see `herald doctor`")
        with ExitStack() as undo:
            undo.callback(native.hook().herald_low_detach)
            launches.start(gate=str(self._table.address))
            undo.callback(launches.stop, gate=str(self._table.address))
            if self._device.cuda_index is not None:
                share = sm_share.of_job(self._table.address, self._row, self._device.cuda_index)
                share.start()
                undo.callback(share.stop)
            self._undo = undo.pop_all()

    def _stop(self) -> None:
        self._undo.close()

    @property
    def domain(self) -> str:
        """Which jobs it meets."""
        return self._table.domain

    @override
    def save_profile(self, path: str | Path) -> None:
        learned.save(path, learned.device_description(self._device.cuda_index))

    def _gpu_model(self) -> str | None:
        index = self._device.cuda_index
        return None if index is None else learned.device_description(index)

    def _device_slots(self) -> tuple[list[int], int]:
        """Table slots of every device that ops may run on, by CUDA index; (slots, number of CUDA devices)."""
        if not self._device.is_cuda:
            return [self._table.device_slot(self._device.name)], 0
        import torch

        count = torch.cuda.device_count()
        return [self._table.device_slot(devices.gpu_name(i)) for i in range(count)], count


@contextmanager
def relieved_stand_in(name: str, domain: str) -> Iterator[None]:
    """Room for the job ``name``, which the program attaches within; where that fails, the stand-in is there again."""
    relieved = next((job for job in attached_jobs() if isinstance(job, LowJob) and job.again), None)
    if relieved is None or relieved.again is None:
        yield
        return
    elsewhere = f", in domain {domain!r} and not {relieved.domain!r}" if domain != relieved.domain else ""
    level = logging.WARNING if elsewhere else logging.INFO
    _log.log(level, "the program attaches itself as %r, in place of what `herald run` attached%s", name, elsewhere)
    relieved.detach()
    try:
        yield
    except BaseException:
        relieved.again()
        raise
