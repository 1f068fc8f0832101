"""Requests of a high-priority job: explicit ones, and one per outermost forward."""

import copy
import functools
import math
import threading
import time
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self

from herald.errors import AttachError, ConfigError

if TYPE_CHECKING:
    import torch

_MOST_FUTURE_S = 60.0  # arrivals may be stamped ahead by a load generator, not by another clock


class Ends(Protocol):
    """What a request needs of its job."""

    def end_request(self, request: int, tokens: int | None) -> None:
        """The request's work is enqueued on the current stream (CUDA) or done (CPU); it made so many tokens."""

    def step_request(self, request: int) -> None:
        """One more step of it is."""

    def first_token(self, request: int) -> None:
        """Its first token is in the host's hands."""

    def lacks_first_token(self) -> None:
        """One of its requests ended well, but nobody said when its first token was there, and that was promised."""


class Request:
    """One open request. End it once, from any thread, on the stream that did its work; ending again does nothing."""

    def __init__(
        self, job: Ends, number: int, *, awaits_token: bool = False, lacks_tokens: Callable[[], None] | None = None
    ) -> None:
        self._job = job
        self._number = number
        self._awaits_token = awaits_token  # its SLO needs `first_token`, which was not called yet
        self._lacks_tokens = lacks_tokens  # whom to tell at the end: its SLO needs a number of tokens, unsaid yet
        self._open = threading.Lock()  # taken by the first end, never released

    def end(self, tokens: int | None = None) -> None:
        """Say that all work of the request is enqueued (CUDA) or done (CPU). Never waits for the GPU.

        ``tokens``: how many it made, the first included (default: its steps); an SLO of time per token needs one of
        the two, and counts as missed without.
        Raises ConfigError for what is no such number.
        """
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
            raise ConfigError(f"tokens = {tokens!r}: give how many tokens the request made, a whole number from 0")
        if self._open.acquire(blocking=False):
            self._job.end_request(self._number, tokens)
            if self._awaits_token and tokens != 0:
                self._job.lacks_first_token()
            elif self._lacks_tokens is not None and tokens is None:
                self._lacks_tokens()

    def first_token(self) -> None:
        """Say that the host has the first token of the request, now: its time to first token. Later calls do nothing.

        Where it is not said, a promised "ttft" or "tpot" counts as missed.
        """
        if not self._open.locked():
            self._awaits_token = False
            self._job.first_token(self._number)

    def step(self) -> None:
        """Say that one step of a request of several (a token, a graph replay) is enqueued (CUDA) or done (CPU).

        Lets Herald predict what remains of it. Forwards of the attached model count by themselves. Of an engine
        (`Job.step`), a request's step is a token and nothing else.
        """
        if not self._open.locked():
            self._lacks_tokens = None
            self._job.step_request(self._number)

    def __del__(self) -> None:
        # A request that was lost (a cancelled client, an exception before `end`) must not hold the gate.
        self._expect_no_tokens()
        self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._expect_no_tokens()
        self.end()

    def _expect_no_tokens(self) -> None:
        """It did not end well: what was not said of its tokens is nobody's mistake."""
        self._awaits_token, self._lacks_tokens = False, None


def arrival_ns(arrival: float | None) -> int:
    """The arrival in ns of the monotonic clock, 0 for "now". Raises ConfigError for another clock's times."""
    if arrival is None:
        return 0
    now = time.monotonic()
    if not isinstance(arrival, int | float) or not math.isfinite(arrival) or not 0 < arrival < now + _MOST_FUTURE_S:
        raise ConfigError(f"arrival = {arrival!r}: give time.monotonic() seconds (now {now:.3f}), not another clock's")
    return max(1, round(arrival * 1e9))


class ForwardRequests:
    """Runs each outermost forward of a model within what ``begin`` returns (a request, a step), until it is removed.

    It stands in for the instance's ``forward``: that catches ``model(x)``, ``model.forward(x)`` and compiled modules,
    and try/finally catches exceptions, where forward hooks miss one or the other.
    """

    def __init__(self, model: "torch.nn.Module", begin: Callable[[], AbstractContextManager[object] | None]) -> None:
        if isinstance(model.__dict__.get("forward"), _wrapper_class()):
            raise AttachError(f"this {type(model).__name__} is attached already: detach its job first")
        self._model = model
        self._had_own = "forward" in model.__dict__
        self._original: Callable[..., Any] = model.forward
        of_class = not self._had_own and getattr(self._original, "__self__", None) is model
        self._wrapper = _wrapper_class()(self._original, begin, model if of_class else None)
        model.forward = self._wrapper

    def remove(self) -> None:
        """Leave the model as it was; a wrapper that someone laid over this one stays, with nothing beneath."""
        self._wrapper.begin = None
        if self._model.__dict__.get("forward") is not self._wrapper:
            return
        if self._had_own:
            self._model.forward = self._original
        else:
            del self._model.forward


_wrapper: type | None = None


def _wrapper_class() -> Any:
    """The class of the stand-in, made when torch is there."""
    global _wrapper  # noqa: PLW0603 -- a class that needs torch, made once
    if _wrapper is not None:
        return _wrapper
    import torch

    class RequestForward:
        def __init__(self, original: Callable[..., Any], begin: Callable[[], Any] | None, model: Any) -> None:
            # Its signature is asked for, by `generate` for one. First, since it brings the attributes of `original`,
            # which may be another library's stand-in with an `original` of its own.
            functools.update_wrapper(self, original)
            self.original = original
            self.begin = begin
            self.model = model  # None where `original` is not the class's forward, but one of the instance's own

        # Not traced by torch.compile: what it calls is.
        @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            request = self.begin() if self.begin is not None else None
            if request is None:
                return self.original(*args, **kwargs)
            with request:
                return self.original(*args, **kwargs)

        # A copy or a pickle of the model is an ordinary model: it must not run, or count for, this one. At this point
        # it is there, but still empty, so that its forward is the class's. What is pickled needs no Herald to be read.
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            if self.model is None:
                return copy.deepcopy(self.original, memo)
            if id(self.model) not in memo:
                raise AttachError(
                    f"a {type(self.model).__name__} copies itself in a way of its own, in which its forward cannot be "
                    "told from that of the copy: detach its job first"
                )
            return memo[id(self.model)].forward

        def __reduce__(self) -> Any:
            if self.model is None:
                return getattr, (types.SimpleNamespace(forward=self.original), "forward")
            # Not the bound method itself: it is pickled by its name, which a decorator may have changed.
            return getattr, (self.model, "forward")

    _wrapper = RequestForward
    return _wrapper
