"""`herald experiment faults`: kill -9 of a service inside a request, of a trainer at the gate, of the daemon.

For each: how long until the others make progress again, what those said that did not, and how long a process that
comes next needs to attach. Every process has a time limit on every answer and is ended when its case is.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from herald.experiments import arrivals, criteria, settings
from herald.experiments.crew import LOAD_TIMEOUT_S, WARMUP_STEPS, Pair, launch_for
from herald.experiments.demo import CASES
from herald.experiments.domain import PrivateDomain, private_mps
from herald.experiments.measurement import Kind
from herald.experiments.process import Worker, WorkerError
from herald.experiments.roles import PRIORITY, ROLES, Role
from herald.experiments.rows import Row
from herald.experiments.trial import SETTLE_STEPS

Victim = Literal["inference", "training", "daemon"]
VICTIMS: Mapping[Victim, str] = {
    "inference": "service killed inside a request",
    "training": "trainer killed at the gate",
    "daemon": "daemon killed",
}
SETTING = settings.get("herald-strict")

START_DELAY_S = 0.5
HOLD_AT_S = 1.0  # the request during which the victim dies begins
KILL_AT_S = 2.0
END_S = 4.0
ANSWER_TIMEOUT_S = 60.0
RATE_HZ = 20.0  # where the service is no victim and holds no long request


@dataclass(frozen=True)
class Survivor:
    """What became of one that was not killed."""

    role: Role
    waited_ms: float | None  # without progress until the kill
    recovered_ms: float | None  # from the kill until progress; None: it made none
    error: str | None = None

    def __str__(self) -> str:
        if self.recovered_ms is None:
            return f"{self.role} made no progress: {self.error or 'it is alive'}"
        waited = "" if self.waited_ms is None else f" (had waited {self.waited_ms:.0f} ms)"
        return f"{self.role} after {self.recovered_ms:.0f} ms{waited}" + (f", then: {self.error}" if self.error else "")


def progress(role: Role, done_s: Sequence[float], kill_s: float) -> Survivor:
    """From the times at which a survivor got something done, and the time of the kill."""
    before = max((done for done in done_s if done <= kill_s), default=None)
    after = min((done for done in done_s if done > kill_s), default=None)
    return Survivor(
        role,
        waited_ms=None if before is None else round((kill_s - before) * 1e3, 1),
        recovered_ms=None if after is None else round((after - kill_s) * 1e3, 1),
    )


def run(device: str, *, mps: bool, seed: int, log_dir: Path) -> Iterator[Row]:
    """A row per victim, each with fresh processes, and under MPS a fresh server."""
    for victim in VICTIMS:
        with ExitStack() as stack:
            pipe = str(stack.enter_context(private_mps("faults")).pipe_dir) if mps else None
            domain = stack.enter_context(PrivateDomain("faults", log_dir))
            domain.start_daemon("strict")
            pair = CASES[device].pair
            stage = Stage(pair, device, seed=seed, domain=domain, mps_pipe=pipe, log_dir=log_dir)
            stack.callback(stage.close)
            yield {"device": device, "mps": mps, "seed": seed, **measured(stage, victim)}


class Stage:
    """The processes of a case: a service, a trainer, and one that comes next, which has loaded but not attached."""

    def __init__(
        self, pair: Pair, device: str, *, seed: int, domain: PrivateDomain, mps_pipe: str | None, log_dir: Path
    ) -> None:
        self.device = device
        self.domain = domain
        self._pair = pair
        self._seed = seed
        self._mps_pipe = mps_pipe
        self._log_dir = log_dir
        self._workers: list[Worker] = []

    def prepare(self, roles: Sequence[Role]) -> list[Worker]:
        """A loaded process for each role. They load at the same time."""
        workers = [Worker(launch_for(role, SETTING, self.device, self._mps_pipe), self._log_dir) for role in roles]
        self._workers += workers
        for role, worker in zip(roles, workers, strict=True):
            worker.send(
                "load",
                workload=self._pair.workload(role),
                device=self.device,
                seed=self._seed,
                warmup=WARMUP_STEPS,
            )
        for worker in workers:
            worker.receive(LOAD_TIMEOUT_S)
        return workers

    def attach(self, role: Role, worker: Worker, *, settle: int) -> float:
        """Have a process attach; the ms that this took it."""
        answer = worker.call(
            "attach",
            timeout_s=ANSWER_TIMEOUT_S,
            domain=self.domain.name,
            priority=PRIORITY[role],
            slo="1s" if role == "inference" else None,
            device=self.device,
            settle=settle,
        )
        return round(float(answer["attach_s"]) * 1e3, 1)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()


def measured(stage: Stage, victim: Victim) -> Row:
    """Kill, and see what the others do."""
    newcomer_role: Role = "training" if victim == "training" else "inference"
    *pair, newcomer = stage.prepare([*ROLES, newcomer_role])
    jobs = dict(zip(ROLES, pair, strict=True))
    for role in reversed(ROLES):  # the trainer learns its ops with nobody in the way
        stage.attach(role, jobs[role], settle=SETTLE_STEPS)
    start_s = time.monotonic() + START_DELAY_S
    _set_off(jobs, victim, start_s)
    kill_s = _kill(stage, jobs, victim, start_s + KILL_AT_S)
    attached = _newcomer(stage, newcomer_role, newcomer)
    survivors = [_survivor(role, jobs[role], victim, start_s, kill_s) for role in ROLES if role != victim]
    return {
        "case": VICTIMS[victim],
        "survivors": [asdict(survivor) for survivor in survivors],
        **attached,
        "daemon_restart_ms": _restarted_ms(stage) if victim == "daemon" else None,
        "recovered": all(_is_well(survivor) for survivor in survivors) and attached["newcomer_error"] is None,
        "outcome": "; ".join([*map(str, survivors), _said(attached)]),
    }


def _set_off(jobs: Mapping[Role, Worker], victim: Victim, start_s: float) -> None:
    """Both compute until END_S; unless the daemon is to die, a long request holds the trainer meanwhile."""
    regular = arrivals.to_json(arrivals.Periodic(RATE_HZ))
    jobs["training"].send("run", start_s=start_s, seconds=END_S, arrivals=regular)
    if victim == "daemon":
        jobs["inference"].send("run", start_s=start_s, seconds=END_S, arrivals=regular)
    else:
        jobs["inference"].send("hold", start_s=start_s + HOLD_AT_S, seconds=END_S - HOLD_AT_S)


def _kill(stage: Stage, jobs: Mapping[Role, Worker], victim: Victim, at_s: float) -> float:
    """SIGKILL at that time; when it really was."""
    time.sleep(max(0.0, at_s - time.monotonic()))
    kill_s = time.monotonic()
    if victim == "daemon":
        stage.domain.kill_daemon()
    else:
        jobs[victim].kill()
    return kill_s


def _newcomer(stage: Stage, role: Role, worker: Worker) -> dict[str, Any]:
    """Let the next process in at once, and see that it works."""
    try:
        attach_ms = stage.attach(role, worker, settle=1)
    except WorkerError as error:
        return {"newcomer": role, "attach_ms": None, "newcomer_error": _first_line(error)}
    return {"newcomer": role, "attach_ms": attach_ms, "newcomer_error": None}


def _survivor(role: Role, worker: Worker, victim: Victim, start_s: float, kill_s: float) -> Survivor:
    holds = role == "inference" and victim != "daemon"
    began_s = start_s + HOLD_AT_S if holds else start_s
    try:
        done_s = worker.receive(ANSWER_TIMEOUT_S)["done_s"]
    except WorkerError as error:
        return Survivor(role, waited_ms=None, recovered_ms=None, error=_first_line(error))
    return progress(role, [began_s + done for done in done_s], kill_s)


def _is_well(survivor: Survivor) -> bool:
    limit_ms = criteria.RECOVERY_S * 1e3
    return survivor.error is None and survivor.recovered_ms is not None and survivor.recovered_ms <= limit_ms


def _restarted_ms(stage: Stage) -> float:
    """How long the next daemon takes from its start to owning the domain."""
    begun_s = time.monotonic()
    stage.domain.start_daemon("strict")
    return round((time.monotonic() - begun_s) * 1e3, 1)


def _said(attached: Mapping[str, Any]) -> str:
    if attached["newcomer_error"] is not None:
        return f"a new {attached['newcomer']} job could not attach: {attached['newcomer_error']}"
    return f"a new {attached['newcomer']} job attached in {attached['attach_ms']:.0f} ms"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    for place, survivor in enumerate(row["survivors"]):
        first = place == 0
        yield (
            f"{row['case']}{' (MPS)' if row['mps'] else ''}" if first else "",
            survivor["role"],
            "" if survivor["waited_ms"] is None else f"{survivor['waited_ms']:.0f}",
            "never" if survivor["recovered_ms"] is None else f"{survivor['recovered_ms']:.0f}",
            ("failed" if row["attach_ms"] is None else f"{row['attach_ms']:.0f}") if first else "",
        )


KIND = Kind("faults", ("case", "survivor", "waited ms", "goes on ms", "attach ms"), _lines)
