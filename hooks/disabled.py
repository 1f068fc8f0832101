"""What `herald.attach` returns under HERALD_DISABLE=1."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from typing_extensions import override

from herald.hooks.engine import StepKind
from herald.hooks.job import Job
from herald.hooks.requests import Request
from herald.job_view import JobView
from herald.slo import SloSpec


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
        del arrival, slo
        return Request(_NoJob(), 0)

    @override
    def step(self, kind: StepKind, deadline: float | None = None) -> AbstractContextManager[object]:
        del kind, deadline
        return nullcontext()

    @override
    def queued(self, count: int) -> None:
        del count

    @override
    def save_profile(self, path: str | Path) -> None:
        del path


class _NoJob:
    def end_request(self, request: int, tokens: int | None) -> None:
        del request, tokens

    def step_request(self, request: int) -> None:
        del request

    def first_token(self, request: int) -> None:
        del request

    def lacks_first_token(self) -> None:
        return
