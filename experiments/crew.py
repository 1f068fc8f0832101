"""The worker processes of an experiment: started when first needed, kept alive between runs, ended together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from herald.errors import ConfigError
from herald.experiments.process import Channel, Launch
from herald.experiments.roles import Role
from herald.experiments.settings import Setting
from herald.launch import launch_env

WARMUP_STEPS = 20
LOAD_TIMEOUT_S = 180.0  # importing torch, creating a context, capturing graphs, warming up
# On a CPU: waking a second thread costs a small service more than it gains; a trainer takes what there is.
NUM_CPU_THREADS: Mapping[Role, int] = {"inference": 1, "training": 2}


@dataclass(frozen=True)
class Pair:
    """A service and a training job that share a device."""

    inference: str
    training: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "transformer+vgg16". Raises ConfigError."""
        parts = text.split("+")
        if len(parts) != 2 or not all(parts):
            raise ConfigError(f"pair = {text!r}: give INFERENCE+TRAINING, as in transformer+vgg16")
        return cls(*parts)

    def workload(self, role: Role) -> str:
        """The name of the workload in that role."""
        return self.inference if role == "inference" else self.training

    def __str__(self) -> str:
        return f"{self.inference}+{self.training}"


def launch_for(role: Role, setting: Setting, device: str, mps_pipe: str | None) -> Launch:
    """How the process of ``role`` must be started for ``setting``.

    A trainer without Herald is launched like one with it, but not lowered; only the setting's own environment comes
    on top. So one process serves as many settings as possible, and settings differ in nothing else.
    """
    device_type = "cuda" if device.startswith("cuda") else "cpu"
    lowered = role == "training" and setting.policy is not None
    env = launch_env("low", device_type, mps_pipe) if role == "training" else {}
    if not lowered:
        env |= launch_env("high", device_type, mps_pipe)
    if device_type == "cpu":
        env["OMP_NUM_THREADS"] = str(NUM_CPU_THREADS[role])
    if role == "training":
        env |= setting.trainer_env
    return Launch(role, tuple(sorted(env.items())), idle_class=lowered and device_type == "cpu")


def load(channels: Sequence[Channel], workload: str, device: str, seed: int) -> list[dict[str, Any]]:
    """Load a workload in every process at the same time, and warm it up; what they say of themselves."""
    for channel in channels:
        send_load(channel, workload, device, seed)
    return [channel.receive(LOAD_TIMEOUT_S) for channel in channels]


def send_load(channel: Channel, workload: str, device: str, seed: int) -> None:
    """Tell a process to load a workload and warm it up; its answer takes up to LOAD_TIMEOUT_S."""
    channel.send("load", workload=workload, device=device, seed=seed, warmup=WARMUP_STEPS)


@dataclass
class Crew:
    """The processes of one pair in one MPS state."""

    pair: Pair
    device: str
    seed: int
    start: Callable[[Launch], Channel]
    mps_pipe: str | None = None
    facts: dict[Role, Mapping[str, Any]] = field(default_factory=dict)  # what the workers say of themselves
    _members: dict[Launch, Channel] = field(default_factory=dict)

    def member(self, role: Role, setting: Setting) -> Channel:
        """The loaded, warm process for ``role`` under ``setting``. Raises WorkerError."""
        launch = launch_for(role, setting, self.device, self.mps_pipe)
        if launch not in self._members:
            channel = self.start(launch)
            self._members[launch] = channel
            (self.facts[role],) = load([channel], self.pair.workload(role), self.device, self.seed)
        return self._members[launch]

    def members(self, setting: Setting) -> dict[Role, Channel]:
        """Every process that ``setting`` needs."""
        return {role: self.member(role, setting) for role in setting.roles}

    def prepare(self, settings: Iterable[Setting]) -> None:
        """Start what these settings need and is not there, all at the same time. Raises WorkerError."""
        needed = {launch_for(role, s, self.device, self.mps_pipe): role for s in settings for role in s.roles}
        missing = {launch: role for launch, role in needed.items() if launch not in self._members}
        for launch in missing:
            self._members[launch] = self.start(launch)
        for launch, role in missing.items():
            send_load(self._members[launch], self.pair.workload(role), self.device, self.seed)
        for launch, role in missing.items():
            self.facts[role] = self._members[launch].receive(LOAD_TIMEOUT_S)

    def num_missing(self, setting: Setting) -> int:
        """How many processes a trial of ``setting`` would have to start."""
        launches = {launch_for(role, setting, self.device, self.mps_pipe) for role in setting.roles}
        return len(launches - self._members.keys())

    @property
    def size(self) -> int:
        """How many processes are alive."""
        return len(self._members)

    def close(self) -> None:
        """End all processes; the next use starts fresh ones."""
        members, self._members = self._members, {}
        with ThreadPoolExecutor() as pool:  # each takes a while to leave its GPU
            list(pool.map(lambda channel: channel.close(), members.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
