"""What `herald.attach` does and returns under HERALD_DISABLE=1: what is wrong with it is an error here, too."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from herald.hooks import devices
from herald.hooks.engine import StepKind, deadline_ns, kind_number, queued_count
from herald.hooks.job import Job
from herald.hooks.requests import Request, arrival_ns
from herald.job_view import JobView
from herald.profiles import Profile
from herald.slo import Slo, SloSpec

if TYPE_CHECKING:
    import torch

profiling = False  # this process makes a profile, for a script that may name it already; set by `herald profile`


def check(device: "str | torch.device | None", profile: Path | None) -> None:
    """What needs no device: the job may run where the GPU is not there for which it is written. Raises ConfigError."""
    if device is not None:
        devices.parse(device)
    if profile is not None and not profiling:
        Profile.load(profile)  # whatever device and torch it was made for


class DisabledView(JobView):
    """A view of zeros; its words for people say why instead."""

    @override
    def __str__(self) -> str:
        """That nothing is counted, and why; the repr has every field."""
        return f"{self.name} (priority {self.priority})\n  Herald is disabled (HERALD_DISABLE=1): nothing is counted"


class DisabledJob(Job):
    """The same calls, no effect."""

    def __init__(self, name: str, priority: str) -> None:
        self.priority = priority
        self._name = name

    @property
    @override
    def name(self) -> str:
        return self._name

    @override
    def stats(self) -> JobView:
        return DisabledView.empty(self._name, self.priority)

    @override
    def detach(self) -> None:
        return

    @override
    def begin(self, *, arrival: float | None = None, slo: SloSpec | None = None) -> Request:
        self._check_serves()
        if slo is not None:
            Slo.parse(slo)
        arrival_ns(arrival)
        return Request(_NoJob(), 0)

    @override
    def step(self, kind: StepKind, deadline: float | None = None) -> AbstractContextManager[object]:
        self._check_serves()
        kind_number(kind)
        deadline_ns(deadline)
        return nullcontext()

    @override
    def queued(self, count: int) -> None:
        self._check_serves()
        queued_count(count)

    @override
    def save_profile(self, path: str | Path) -> None:
        if self.priority == "high":
            super().save_profile(path)

    def _check_serves(self) -> None:
        if self.priority == "low":
            raise self._serves_nothing()


class _NoJob:
    def end_request(self, request: int, tokens: int | None) -> None:
        del request, tokens

    def step_request(self, request: int) -> None:
        del request

    def first_token(self, request: int) -> None:
        del request

    def lacks_first_token(self) -> None:
        return
