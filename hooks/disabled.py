"""What `herald.attach` returns under HERALD_DISABLE=1."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from typing_extensions import override

from herald.hooks.engine import StepKind
from herald.hooks.job import Job
from herald.hooks.requests import Request
from herald.job_view import JobView
from herald.slo import SloSpec


class DisabledJob(Job):
    """The same calls, no effect."""

    def __init__(self, name: str, priority: str, view: JobView) -> None:
        self.priority = priority
        self._name = name
        self._view = view

    @property
    @override
    def name(self) -> str:
        return self._name

    @override
    def stats(self) -> JobView:
        return self._view

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
