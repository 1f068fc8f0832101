"""Work that is repeated: a batch of calls as one CUDA graph, so that the host is never what limits it.

On a CPU a batch is a loop. A batch knows how long one call takes alone; whoever runs it decides when to stop.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from herald.errors import HeraldError
from herald.experiments.completion import mark

BATCH_NS = 1_500_000  # long against a launch, short against a time slice: an op loop is stopped at batch boundaries
MOST_CALLS = 400  # in a batch
_TRIAL_CALLS = 16
_WARMUP_CALLS = 3
_MOST_IN_FLIGHT = 2
_FIRST_BATCH_LIMIT_S = 10.0
_STOP_LIMIT_S = 10.0

Call = Callable[[], object]


class ReplayError(HeraldError):
    """A call that cannot be repeated, or a loop that does not begin or end."""


class Batch(Protocol):
    """Some calls of the same work, enqueued together."""

    num_calls: int

    def enqueue(self) -> None:
        """Begin one batch on the stream of this batch; does not wait for the device."""
        ...


class PlainBatch:
    """A loop on the host."""

    def __init__(self, call: Call, num_calls: int) -> None:
        self.call = call
        self.num_calls = num_calls

    @torch.inference_mode()
    def enqueue(self) -> None:
        """Call it all."""
        for _ in range(self.num_calls):
            self.call()


class GraphBatch:
    """A CUDA graph. Its kernels have the priority of the stream on which they were captured."""

    def __init__(self, call: Call, num_calls: int, stream: torch.cuda.Stream) -> None:
        self.num_calls = num_calls
        self.graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(num_calls):
                call()

    def enqueue(self) -> None:
        """Replay."""
        self.graph.replay()


class Repeated:
    """A call that can be run in batches, on a stream of its own where there are streams."""

    def __init__(self, call: Call, device: torch.device, *, high_priority: bool = False) -> None:
        self.device = device
        # Between processes under MPS it is the client's priority that counts: see herald.launch.
        self.stream = _stream(device, -1 if high_priority else 0) if device.type == "cuda" else None
        if self.stream is not None:  # what the call works on may still be being made
            self.stream.wait_stream(torch.cuda.current_stream(device))
        self.batch: Batch = PlainBatch(call, 1)
        self._call = call

    def warm_up(self) -> None:
        """Calls outside a capture: libraries choose kernels and allocate workspaces. Raises what the call raises."""
        for _ in range(_WARMUP_CALLS):
            self.batch_ns()

    def capture(self, num_calls: int) -> None:
        """Make a batch of so many calls. Raises what the call raises where it cannot be captured."""
        stream = self.stream
        self.batch = GraphBatch(self._call, num_calls, stream) if stream else PlainBatch(self._call, num_calls)

    def fit(self) -> None:
        """Choose the number of calls so that a batch takes about BATCH_NS."""
        plain_ns = self.batch_ns()
        self.capture(1 if plain_ns * _TRIAL_CALLS > BATCH_NS else _TRIAL_CALLS)
        num_calls = max(1, min(MOST_CALLS, round(BATCH_NS / self.call_ns())))
        if num_calls != self.batch.num_calls:
            self.capture(num_calls)

    def call_ns(self) -> float:
        """Time of one call in a batch, nothing else running in this process: the least of three batches."""
        return min(self.batch_ns() for _ in range(3)) / self.batch.num_calls

    def batch_ns(self) -> int:
        """Time of one batch as the host sees it, from before the launch to completion."""
        with self.on_stream():
            begun_ns = time.monotonic_ns()
            self.batch.enqueue()
            mark(self.device)()
            return time.monotonic_ns() - begun_ns

    def on_stream(self) -> AbstractContextManager[object]:
        """Make this work's stream the current one, where there are streams."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class Loop:
    """Batches without a pause, on a thread, until told to stop."""

    def __init__(self, work: Repeated) -> None:
        self.work = work
        self._stop = threading.Event()
        self._running = threading.Event()
        self._error: BaseException | None = None
        self._num_batches = 0
        self._elapsed_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Return once the first batch is done and more are under way. Raises ReplayError."""
        self._thread.start()
        if not self._running.wait(_FIRST_BATCH_LIMIT_S):
            raise ReplayError(f"the loop's first batch was not done within {_FIRST_BATCH_LIMIT_S:g} s")
        self._check()

    def stop(self) -> float:
        """Wait until the loop has ended; the mean time of a call in ns. Raises ReplayError."""
        self._stop.set()
        self._thread.join(_STOP_LIMIT_S)
        if self._thread.is_alive():
            raise ReplayError(f"the loop did not end within {_STOP_LIMIT_S:g} s")
        self._check()
        return self._elapsed_s * 1e9 / max(1, self._num_batches * self.work.batch.num_calls)

    def _check(self) -> None:
        if self._error is not None:
            raise ReplayError(f"the loop failed: {self._error}") from self._error

    def _run(self) -> None:
        try:
            with self.work.on_stream():
                self._repeat()
        except BaseException as error:  # start and stop tell
            self._error = error
        finally:
            self._running.set()

    def _repeat(self) -> None:
        in_flight = deque[Callable[[], None]]()
        begun_s = time.monotonic()
        while not self._stop.is_set():
            self.work.batch.enqueue()
            in_flight.append(mark(self.work.device))
            if len(in_flight) >= _MOST_IN_FLIGHT:
                in_flight.popleft()()
                self._running.set()
                self._num_batches += 1
        for wait in in_flight:
            wait()
            self._num_batches += 1
        self._elapsed_s = time.monotonic() - begun_s


def _stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]  # torch
