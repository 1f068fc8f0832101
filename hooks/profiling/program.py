"""Profiles a program that runs by itself: its optimizer tells where an iteration ends.

The passes change in torch's process-wide hook after an optimizer's step. The first optimizer that steps counts; others
(a discriminator's) are part of its iteration.
"""

from contextlib import ExitStack
from typing import Self

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from herald.errors import HeraldError
from herald.hooks import devices, learned
from herald.hooks.profiling import telling
from herald.hooks.profiling.passes import Measurement, place_of
from herald.profile_process import Order


class ProgramProfiler:
    """Counts a program's iterations by the steps of its first optimizer, and measures some of them."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._optimizer: Optimizer | None = None
        self._cuda_index: int | None = None
        self._measurement: Measurement | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(register_optimizer_step_post_hook(self._on_step).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _on_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        """Torch calls it at the end of every optimizer's step."""
        del args, kwargs
        if self._optimizer is None:
            self._optimizer = optimizer
        if self._optimizer is not optimizer:
            return
        try:
            self._border()
        except HeraldError as error:
            telling.fail(self._order, error)

    def _border(self) -> None:
        if self._measurement is None:
            self._measurement = self._begin()
        else:
            self._measurement.schedule.border()
        schedule = self._measurement.schedule
        telling.tell(self._order, f"{schedule.num_done} of {schedule.num_iterations}")
        if schedule.done:
            self._stack.close()
            self._finish(self._measurement)

    def _begin(self) -> Measurement:
        assert self._optimizer is not None
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        where = devices.resolve(self._order.device or parameters[0].device, None)
        self._cuda_index = where.cuda_index
        measurement = Measurement(where.cuda_index, warmup=self._order.warmup, iterations=self._order.iterations)
        self._stack.enter_context(measurement.schedule)
        measurement.schedule.begin()
        return measurement

    def _finish(self, measurement: Measurement) -> None:
        device = learned.device_description(self._cuda_index)
        telling.write(self._order, measurement.profile(place_of(self._cuda_index, device, self._order.workload)))
        if self._order.stop:
            raise SystemExit(0)
