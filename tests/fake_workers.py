"""Workers of an experiment that are no processes: they answer at once, and a clock of theirs says how long it took."""

from typing import Any

from herald.experiments.arrivals import from_json
from herald.experiments.process import Launch, WorkerError

SERVICE_S = 0.005
SERVICE_UNDER_MPS_S = 0.006


class FakeWorker:
    """Serves every request in 5 ms, 6 ms under MPS, and trains at 10 steps/s; fails where it is told to."""

    def __init__(self, launch: Launch, fleet: "Fleet") -> None:
        self.launch = launch
        self.fleet = fleet
        self.answers: list[dict[str, Any]] = []
        self.is_open = True

    def send(self, do: str, **fields: Any) -> None:
        self.fleet.log.append((self.launch.name, do, fields))
        self.answers.append(getattr(self, f"on_{do}")(**fields))

    def receive(self, timeout_s: float) -> dict[str, Any]:
        return self.answers.pop(0)

    def call(self, do: str, *, timeout_s: float, **fields: object) -> dict[str, Any]:
        self.send(do, **fields)
        return self.receive(timeout_s)

    def close(self) -> None:
        self.is_open = False

    def on_load(self, **fields: Any) -> dict[str, Any]:
        return {"torch": "fake", "workload": fields["workload"]}

    def on_steps(self, count: int) -> dict[str, Any]:
        return {"step_s": [SERVICE_S] * count}

    def on_instrument(self, name: str, requests: int) -> dict[str, Any]:
        assert name == "device-share"
        return {"busy_share": self.fleet.busy_share}

    def on_attach(self, **_fields: Any) -> dict[str, Any]:
        return {"attach_s": 0.1}

    def on_detach(self) -> dict[str, Any]:
        return {"ops_seen": 5}

    def on_run(self, start_s: float, seconds: float, arrivals: dict[str, Any]) -> dict[str, Any]:
        if self.fleet.failures:
            raise WorkerError(self.fleet.failures.pop())
        self.fleet.now_s += seconds / 2  # both jobs of a run wait for the same time; half each is near enough
        if self.launch.name == "training":
            return {"done_s": [0.1 * step for step in range(1, 21)]}
        scheduled = from_json(arrivals).times_s(seconds)
        took_s = SERVICE_UNDER_MPS_S if "CUDA_MPS_PIPE_DIRECTORY" in dict(self.launch.env) else SERVICE_S
        return {"scheduled_s": scheduled, "begun_s": scheduled, "done_s": [time + took_s for time in scheduled]}


class Fleet:
    """All workers of a test, what they were told, and the clock that their runs advance."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, dict[str, Any]]] = []
        self.workers: list[FakeWorker] = []
        self.failures: list[str] = []
        self.busy_share = 1.0
        self.now_s = 0.0

    def start(self, launch: Launch) -> FakeWorker:
        self.workers.append(FakeWorker(launch, self))
        return self.workers[-1]

    def told(self, do: str) -> list[dict[str, Any]]:
        return [fields for _, command, fields in self.log if command == do]
