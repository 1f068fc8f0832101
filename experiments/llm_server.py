"""A small LLM server with continuous batching: what an engine tells Herald, and when.

Requests arrive at a front end, which tells Herald at once; the engine takes them into slots as these come free. An
iteration is a prefill of all that were taken, or one more token for every slot. A prefill goes first, as in vLLM's
scheduler before chunked prefill: a first token is waited for longest. Works without Herald as well (``job`` None).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal, Protocol

import numpy as np

from herald.experiments.arrivals import Arrivals

StepKind = Literal["prefill", "decode"]


class OpenRequest(Protocol):
    """What `Job.begin` returns, as far as an engine needs it."""

    def first_token(self) -> None:
        """The host has the first token."""

    def end(self, tokens: int | None = None) -> None:
        """The host has all of them."""


class EngineJob(Protocol):
    """What an engine needs of a `herald.Job`."""

    def begin(self, *, arrival: float | None = None) -> OpenRequest:
        """A request has arrived, at a time in time.monotonic() seconds."""
        ...

    def queued(self, count: int) -> None:
        """So many requests wait for a slot."""

    def step(self, kind: StepKind) -> AbstractContextManager[object]:
        """One iteration, on the current stream."""
        ...


class Model(Protocol):
    """What an engine needs of a model with slots."""

    num_slots: int

    def prefill(self, slots: Sequence[int], prompt_lengths: Sequence[int]) -> Callable[[], None]:
        """Enqueue the first token of new sequences; the result waits until the host has it."""
        ...

    def decode(self) -> Callable[[], None]:
        """Enqueue one more token for every slot; likewise."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A request as it comes."""

    arrival_s: float  # from the start of the run
    length: int  # tokens
    new_tokens: int  # that are wanted, the first included


@dataclass(frozen=True)
class Lengths:
    """Between which numbers of tokens requests are, the ends included; each is as likely."""

    prompt: tuple[int, int]
    new: tuple[int, int]

    def prompts(self, arrivals: Arrivals, seconds: float, seed: int) -> list[Prompt]:
        """The requests of ``seconds``: equal arguments, equal requests."""
        generator = np.random.default_rng(seed)
        return [
            Prompt(
                arrival_s,
                int(generator.integers(*self.prompt, endpoint=True)),
                int(generator.integers(*self.new, endpoint=True)),
            )
            for arrival_s in arrivals.times_s(seconds)
        ]


@dataclass(frozen=True)
class Served:
    """What became of a request; s from the start of the run."""

    arrival_s: float  # as scheduled
    first_token_s: float
    done_s: float
    tokens: int

    @property
    def ttft_ms(self) -> float:
        """Time to first token, from the scheduled arrival."""
        return (self.first_token_s - self.arrival_s) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per further token; None where there is none."""
        return (self.done_s - self.first_token_s) * 1e3 / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(frozen=True)
class Arrived:
    """A request that the front end has told Herald of."""

    prompt: Prompt
    told: OpenRequest | None


class FrontEnd(Protocol):
    """Where requests come from."""

    def take(self, *, wait: bool) -> list[Arrived]:
        """Those that have arrived since; with ``wait`` at least one. Empty then: there will be no more."""
        ...


class Schedule:
    """A front end that admits requests at their times, in a thread of its own: open loop, whatever the engine does."""

    def __init__(self, prompts: Sequence[Prompt], start_s: float, job: EngineJob | None) -> None:
        self._queue = SimpleQueue[Arrived | BaseException | None]()
        self._over = False
        threading.Thread(target=self._admit, args=(prompts, start_s, job), daemon=True).start()

    def take(self, *, wait: bool) -> list[Arrived]:
        """See `FrontEnd`."""
        taken: list[Arrived] = []
        while not self._over:
            try:
                arrived = self._queue.get(block=wait and not taken)
            except Empty:
                break
            if isinstance(arrived, BaseException):
                raise arrived
            if arrived is None:
                self._over = True
            else:
                taken.append(arrived)
        return taken

    def _admit(self, prompts: Sequence[Prompt], start_s: float, job: EngineJob | None) -> None:
        try:
            for prompt in prompts:
                arrival_s = start_s + prompt.arrival_s
                while (left_s := arrival_s - time.monotonic()) > 0:
                    time.sleep(left_s)
                self._queue.put(Arrived(prompt, job.begin(arrival=arrival_s) if job else None))
            self._queue.put(None)
        except BaseException as error:  # the engine raises it
            self._queue.put(error)


@dataclass
class _Sequence:
    """A request in a slot."""

    arrived: Arrived
    first_token_s: float = 0.0
    tokens: int = 0

    @property
    def is_done(self) -> bool:
        return self.tokens == self.arrived.prompt.new_tokens


@dataclass
class Engine:
    """The loop over iterations; one thread."""

    model: Model
    job: EngineJob | None = None
    clock_s: Callable[[], float] = time.monotonic
    _waiting: deque[Arrived] = field(default_factory=deque)
    _running: dict[int, _Sequence] = field(default_factory=dict)  # by slot
    _served: list[Served] = field(default_factory=list)
    _queued: int = 0  # as Herald was told last

    def serve(self, front_end: FrontEnd, start_s: float) -> list[Served]:
        """Until the front end has no more and all are done. In the order in which they were."""
        while True:
            idle = not self._running and not self._waiting
            arrived = front_end.take(wait=idle)
            if idle and not arrived:
                served, self._served = self._served, []
                return served
            self._waiting.extend(arrived)
            taken = self._fill_slots()
            self._tell_queued()
            if taken:
                self._prefill(taken, start_s)
            else:
                self._decode(start_s)

    def _fill_slots(self) -> list[int]:
        free = [slot for slot in range(self.model.num_slots) if slot not in self._running]
        taken = free[: len(self._waiting)]
        for slot in taken:
            self._running[slot] = _Sequence(self._waiting.popleft())
        return taken

    def _tell_queued(self) -> None:
        if self.job and self._queued != len(self._waiting):
            self._queued = len(self._waiting)
            self.job.queued(self._queued)

    def _prefill(self, slots: Sequence[int], start_s: float) -> None:
        lengths = [self._running[slot].arrived.prompt.length for slot in slots]
        with self._step("prefill"):
            wait = self.model.prefill(slots, lengths)
        wait()
        now_s = self.clock_s() - start_s
        for slot in slots:
            sequence = self._running[slot]
            sequence.first_token_s = now_s
            if sequence.arrived.told:
                sequence.arrived.told.first_token()
        self._count_token(slots, now_s)

    def _decode(self, start_s: float) -> None:
        with self._step("decode"):
            wait = self.model.decode()
        wait()
        self._count_token(list(self._running), self.clock_s() - start_s)

    def _count_token(self, slots: Sequence[int], now_s: float) -> None:
        """Each of these has one more; who has all leaves."""
        for slot in slots:
            sequence = self._running[slot]
            sequence.tokens += 1
            if sequence.is_done:
                arrived = self._running.pop(slot).arrived
                if arrived.told:
                    arrived.told.end(tokens=sequence.tokens)
                self._served.append(Served(arrived.prompt.arrival_s, sequence.first_token_s, now_s, sequence.tokens))

    def _step(self, kind: StepKind) -> AbstractContextManager[object]:
        return self.job.step(kind) if self.job else nullcontext()
