"""One job process of an experiment: reads commands as JSON lines, answers each with one JSON line.

    {"do": "load", "workload": "vgg16", "device": "cuda", "seed": 0, "warmup": 20}  ->  {"ok": {...}}
    anything that fails                                                             ->  {"error": "...", "kind": "..."}

It stays alive between runs, so that start-up is paid once, and takes part in Herald only between `attach` and
`detach`. Times in answers are seconds since the start of the run (CLOCK_MONOTONIC, which all processes share).
It ends when its standard input does. Started by `process.Worker`; owns no schedule and decides nothing.
"""

import gc
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any, Literal, Protocol, TextIO

IDLE_FLAG = "--idle-class"

# Steps that may be in flight on a GPU, as in a training loop that reads its loss now and then.
RUN_AHEAD_STEPS = 2


class OpenRequest(Protocol):
    """What `Job.begin` returns, as far as a service needs it."""

    def end(self) -> None:
        """No more device work of this request will be enqueued."""
        ...


class _Untold:
    """A request that nobody is told of: the service without Herald."""

    def end(self) -> None:
        pass


class Session:
    """The commands of a worker, one method each; the state between them is what the process holds alive."""

    def __init__(self) -> None:
        self.job: Any = None  # herald.Job, between attach and detach

    def load(
        self, workload: str, device: str, seed: int, warmup: int, deterministic: bool = False
    ) -> dict[str, object]:
        """Build a workload and run ``warmup`` steps; answers with facts about this process for the row."""
        import torch

        from herald.experiments import workloads

        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        self.workload = workloads.get(workload)
        self.device = torch.device(device)
        self.program = self.workload.make(self.device, seed)
        self.steps(warmup)
        on_cuda = self.device.type == "cuda"
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "gpu": torch.cuda.get_device_name(self.device) if on_cuda else None,
            "num_threads": torch.get_num_threads(),
        }

    def attach(
        self,
        *,
        domain: str,
        priority: Literal["high", "low"],
        slo: str | None,
        device: str,
        settle: int,
        profile: str | None = None,
        follow: bool = False,
        observe: bool = False,
        name: str | None = None,
        config: str | None = None,
    ) -> dict[str, object]:
        """Take part in Herald, then run ``settle`` steps with nobody in the way, so that it knows the ops.

        May come before `load`: a program that captures a CUDA graph is to capture it attached. ``profile``: a file of
        op costs. ``follow``: let Herald follow the progress of requests through the program's model, where its policy
        needs that; ``observe``: of every request. ``name``: the job's key in the ``config`` file's [jobs].
        """
        import herald

        program: Any = self.program if follow else None
        model = program.model if follow else None
        before_s = time.monotonic()
        self.job = herald.attach(
            model,
            priority=priority,
            slo=slo,
            name=name or f"{priority}-job",
            domain=domain,
            device=device,
            profile=profile,
            config=config,
        )
        if observe:
            self.job.observe_progress()
        attached_s = time.monotonic()
        if settle:
            self.steps(settle)
        return {"attach_s": attached_s - before_s}

    def detach(self) -> dict[str, object]:
        """Leave Herald; answers with the job's counters."""
        stats = self.stats()
        self.job.detach()
        self.job = None
        return stats

    def stats(self) -> dict[str, object]:
        """The counters of the attached job."""
        return {key: value for key, value in asdict(self.job.stats()).items() if _is_plain(value)}

    def steps(self, count: int, losses: bool = False) -> dict[str, object]:
        """``count`` requests or training steps back to back, each waited for; their times and, if wanted, losses."""
        from herald.experiments.completion import mark

        times_s: list[float] = []
        outputs: list[str] = []
        for _ in range(count):
            begun_s = time.monotonic()
            output = self._step()
            mark(self.device)()
            times_s.append(round(time.monotonic() - begun_s, 6))
            if losses:
                outputs.append(float(output).hex())  # exact
        return {"step_s": times_s, "losses": outputs}

    def train(self, count: int) -> dict[str, object]:
        """``count`` steps as a training loop runs them, with RUN_AHEAD_STEPS in flight; the time of all of them."""
        from herald.experiments.completion import mark

        begun_s = time.monotonic()
        in_flight = deque[Callable[[], None]]()
        for _ in range(count):
            self._step()
            in_flight.append(mark(self.device))
            if len(in_flight) > RUN_AHEAD_STEPS:
                in_flight.popleft()()
        while in_flight:
            in_flight.popleft()()
        return {"elapsed_s": time.monotonic() - begun_s}

    def run(self, start_s: float, seconds: float, arrivals: Mapping[str, object]) -> dict[str, object]:
        """From ``start_s`` on the monotonic clock, serve the arrivals of ``seconds``, or train that long."""
        from herald.experiments.arrivals import from_json

        gc.collect()
        if self.workload.role == "training":
            return self._train_until(start_s, start_s + seconds)
        return self._serve(start_s, from_json(arrivals).times_s(seconds))

    def hold(self, start_s: float, seconds: float) -> dict[str, object]:
        """One request that lasts ``seconds``: the service computes all the while; when each computation was done."""
        from herald.experiments.completion import mark

        done_s: list[float] = []
        _sleep_until(start_s)
        request = self._open(start_s)
        while time.monotonic() < start_s + seconds:
            self.program.step()
            mark(self.device)()
            done_s.append(round(time.monotonic() - start_s, 6))
        request.end()
        return {"done_s": done_s}

    def instrument(self, name: str, **fields: object) -> dict[str, object]:
        """Have an instrument measure inside this process: see `instruments`."""
        from herald.experiments import instruments

        return instruments.get(name)(self, **fields)

    def _step(self) -> Any:
        """One step; for a service, one request that Herald is told of."""
        if self.workload.role == "training" or self.job is None:
            return self.program.step()
        with self.job.request():
            return self.program.step()

    def _open(self, arrival_s: float) -> OpenRequest:
        return _Untold() if self.job is None else self.job.begin(arrival=arrival_s)

    def _train_until(self, start_s: float, end_s: float) -> dict[str, object]:
        from herald.experiments.completion import mark

        run_ahead = RUN_AHEAD_STEPS if self.device.type == "cuda" else 0
        in_flight = deque[Callable[[], None]]()
        done_s: list[float] = []

        def complete_one() -> None:
            in_flight.popleft()()
            done_s.append(round(time.monotonic() - start_s, 6))

        _sleep_until(start_s)
        while time.monotonic() < end_s:
            self.program.step()
            in_flight.append(mark(self.device))
            if len(in_flight) > run_ahead:
                complete_one()
        while in_flight:
            complete_one()
        return {"done_s": done_s}

    def _serve(self, start_s: float, scheduled_s: Sequence[float]) -> dict[str, object]:
        """First come, first served, one at a time: a front end admits requests on schedule, this thread serves.

        The front end tells Herald of a request when it arrives, not when its turn comes: that a second one waits
        is part of what a policy decides on.
        """
        from herald.experiments.completion import mark

        admitted = SimpleQueue[OpenRequest | BaseException]()
        front_end = threading.Thread(target=self._admit, args=(start_s, scheduled_s, admitted), daemon=True)
        front_end.start()
        begun_s: list[float] = []
        done_s: list[float] = []
        for _ in scheduled_s:
            request = admitted.get()
            if isinstance(request, BaseException):
                raise request
            begun_s.append(round(time.monotonic() - start_s, 6))
            try:
                self.program.step()
            finally:
                request.end()  # after the last op is enqueued, before it is done
            mark(self.device)()
            done_s.append(round(time.monotonic() - start_s, 6))
        front_end.join()
        return {"scheduled_s": [round(s, 6) for s in scheduled_s], "begun_s": begun_s, "done_s": done_s}

    def _admit(
        self,
        start_s: float,
        scheduled_s: Sequence[float],
        admitted: "SimpleQueue[OpenRequest | BaseException]",
    ) -> None:
        try:
            for scheduled in scheduled_s:
                _sleep_until(start_s + scheduled)
                admitted.put(self._open(start_s + scheduled))
        except BaseException as error:  # the serving thread raises it
            admitted.put(error)


Commands = Mapping[str, Callable[..., dict[str, object]]]  # methods of a session, by name

COMMANDS: Commands = {
    method.__name__: method
    for method in (
        Session.load,
        Session.attach,
        Session.detach,
        Session.stats,
        Session.steps,
        Session.train,
        Session.run,
        Session.hold,
        Session.instrument,
    )
}


def serve_commands(session: object, known: Commands, commands: TextIO, answers: TextIO) -> None:
    """Answer commands until there are no more."""
    for line in commands:
        fields = json.loads(line)
        try:
            answer: dict[str, object] = {"ok": known[fields.pop("do")](session, **fields)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": str(error) or repr(error), "kind": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(session: object, known: Commands) -> None:
    """Keep standard output for answers alone: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if IDLE_FLAG in sys.argv[1:]:
        from herald import launch

        launch.use_idle_class()  # before torch starts threads: they inherit it
    serve_commands(session, known, sys.stdin, answers)


def _sleep_until(time_s: float) -> None:
    while (left_s := time_s - time.monotonic()) > 0:
        time.sleep(left_s)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


if __name__ == "__main__":
    main(Session(), COMMANDS)
