"""What is simulated, as frozen data: services with their arrivals, trainers, a GPU with both."""

from dataclasses import dataclass

from herald.config import DEFAULT_TARGET
from herald.errors import ConfigError
from herald.scheduler.simulator.interference import NO_MEASUREMENTS, Interference


@dataclass(frozen=True)
class ServiceModel:
    """A service that takes its requests in the order in which they arrive, one at a time."""

    name: str
    arrivals_s: tuple[float, ...]  # ascending, from the start of the run
    alone_ns: tuple[int, ...]  # service times alone, of which each request draws one
    slo_ns: int = 0  # 0: none
    target: float = DEFAULT_TARGET
    kind: str = ""  # its name in the interference model; "": `name`
    in_order: bool = False  # the requests have these service times one after the other; nothing is drawn
    checkpoints: int = 8  # equal parts of a request that its agent sees done; 1: only its end

    def __post_init__(self) -> None:
        if not self.alone_ns or min(self.alone_ns) <= 0:
            raise ConfigError(f"service {self.name}: alone_ns needs service times above 0")
        if self.in_order and len(self.alone_ns) < len(self.arrivals_s):
            raise ConfigError(
                f"service {self.name}: {len(self.alone_ns)} service times in order for {len(self.arrivals_s)} arrivals"
            )


@dataclass(frozen=True)
class TrainerModel:
    """A training job that always has work."""

    name: str
    step_ns: int  # device time of a step; shares of SMs change between steps
    longest_stretch_ns: int  # device time that a closing gate cannot stop, at most
    duty: float = 1.0  # share of time that the device works for it alone; below 1: launch-bound
    sm_total: int = 0  # SMs of the device, if it can keep to a share of them; 0: it cannot
    weight: float = 1.0
    floor: float = 0.0
    kind: str = ""  # its name in the interference model; "": `name`

    def __post_init__(self) -> None:
        if not 0 < self.duty <= 1:
            raise ConfigError(f"trainer {self.name}: duty = {self.duty:g} is not above 0 and at most 1")
        if self.step_ns <= 0 or self.longest_stretch_ns < 0:
            raise ConfigError(f"trainer {self.name}: a step takes time, and its longest stretch is not negative")


@dataclass(frozen=True)
class GpuModel:
    """One GPU and all that runs on it."""

    services: tuple[ServiceModel, ...]
    trainers: tuple[TrainerModel, ...]
    interference: Interference = NO_MEASUREMENTS
    device: str = "GPU-simulated"
    mps: bool = False  # what the rows say; what MPS does is in the interference
