"""What a person writes in herald.toml, read into frozen dataclasses.

Jobs and the daemon read the same file, so this module knows neither policies nor torch: whether a policy of
that name exists is for the daemon to say. A Config never changes, and unknown keys are errors.

    domain = "default"            # which jobs meet
    policy = "herald"             # strict (default), herald, laxity, free, timeslice, reserve:16, tgs, orion
    [mps]
    enabled = false               # the daemon owns an MPS server
    [limits]
    max_hold = "10s"              # the longest that one request may hold training back; what runs on is unprotected
    floor = 0.05                  # share of time that training gets however long the holds are
    quantum = "250us"             # predicted heavy time between two waits of a gated stream
    [classes]
    light = "10%"                 # an op that delays a concurrent request by less is light; "0%": every op takes turns
    [metrics]
    listen = "127.0.0.1:9464"     # the daemon serves Prometheus metrics there; default: nowhere
    [jobs.chat]
    priority = "high"
    slo = "50ms"
    target = 0.99                 # share of requests that must meet the SLO
    [jobs.llm]
    priority = "high"             # of a request: all of it, to its first token, per further token; any of them
    slo = { latency = "20s", ttft = "500ms", tpot = "50ms" }
    [jobs.train]
    priority = "low"
    weight = 2                    # its share beside other trainers of the device; default: 1
    floor = 0.2                   # the share of time that it is promised after a hold of max_hold; default: 0
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from herald.durations import parse_duration
from herald.errors import ConfigError
from herald.settings import Settings, check_domain, check_name
from herald.slo import Slo

Priority = Literal["high", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "low")
DEFAULT_POLICY = "strict"
DEFAULT_TARGET = 0.99
MOST_TARGET = 0.999999

_T = TypeVar("_T")


@dataclass(frozen=True)
class MpsConfig:
    """[mps]"""

    enabled: bool = False


@dataclass(frozen=True)
class Limits:
    """[limits]: what training is guaranteed whatever the requests do."""

    max_hold_ns: int = 10_000_000_000
    floor: float = 0.05
    quantum_ns: int = 250_000


@dataclass(frozen=True)
class ClassesConfig:
    """[classes]: which ops are light, as the harm that they may do."""

    light_percent: float = 10.0  # delay of a concurrent request; 0: nothing is light


@dataclass(frozen=True)
class MetricsConfig:
    """[metrics]: where the daemon serves them, unencrypted and to whoever asks; None: nowhere."""

    listen: tuple[str, int] | None = None  # host, port


@dataclass(frozen=True)
class JobConfig:
    """[jobs.NAME]: what is known of a job before it attaches. None leaves it to `herald.attach`."""

    name: str
    priority: Priority | None = None
    slo: Slo | None = None
    target: float = DEFAULT_TARGET
    weight: float = 1.0  # low priority: its share beside others
    floor: float = 0.0  # low priority: the share of time that it is promised after a hold of max_hold


@dataclass(frozen=True)
class Config:
    """A whole configuration; `Config()` is that of a user who wrote none."""

    source: str | None = None  # the file, for messages
    domain: str | None = None  # None: HERALD_DOMAIN, else the default domain
    policy: str = DEFAULT_POLICY
    mps: MpsConfig = MpsConfig()
    limits: Limits = Limits()
    classes: ClassesConfig = ClassesConfig()
    metrics: MetricsConfig = MetricsConfig()
    jobs: Mapping[str, JobConfig] = field(default_factory=lambda: MappingProxyType({}))

    def job(self, name: str) -> JobConfig:
        """What the file says of job ``name``; the defaults where it says nothing."""
        return self.jobs.get(name) or JobConfig(name)


def find(path: str | Path | None = None) -> Config:
    """The configuration at ``path``, else at HERALD_CONFIG, else that of a user who wrote none. Raises ConfigError."""
    chosen = path or Settings.from_env().config
    return load(chosen) if chosen else Config()


def choose_domain(given: str | None, config: Config | None = None) -> str:
    """The domain of a command: --domain, else the config's, else HERALD_DOMAIN, else "default". Raises ConfigError."""
    if given:
        return check_domain(given, setting="--domain")
    return (config or find()).domain or Settings.from_env().domain


def load(path: str | Path) -> Config:
    """Read a TOML file. Raises ConfigError naming the file, the key, its value and what is allowed."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read ({error.strerror}): give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path}: is not UTF-8 text ({error.reason}): give a TOML file") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config {path}: is not valid TOML: {error}") from error
    return parse(document, source=str(path))


def parse(document: Mapping[str, object], *, source: str = "<config>") -> Config:
    """Check a parsed document. Raises ConfigError like `load`."""
    root = _Section(source, (), document, allowed=("domain", "policy", "mps", "limits", "classes", "metrics", "jobs"))
    mps = root.section("mps", allowed=("enabled",))
    limits = root.section("limits", allowed=("max_hold", "floor", "quantum"))
    classes = root.section("classes", allowed=("light",))
    metrics = root.section("metrics", allowed=("listen",))
    jobs = root.section("jobs", allowed=None)
    return Config(
        source=source,
        domain=root.get("domain", None, _domain),
        policy=root.get("policy", DEFAULT_POLICY, _text),
        mps=MpsConfig(enabled=mps.get("enabled", MpsConfig.enabled, _switch)),
        limits=Limits(
            max_hold_ns=limits.get("max_hold", Limits.max_hold_ns, _max_hold_ns),
            floor=limits.get("floor", Limits.floor, _floor),
            quantum_ns=limits.get("quantum", Limits.quantum_ns, _quantum_ns),
        ),
        classes=ClassesConfig(light_percent=classes.get("light", ClassesConfig.light_percent, _percent)),
        metrics=MetricsConfig(listen=metrics.get("listen", None, _address)),
        jobs=MappingProxyType({name: _job(jobs, name) for name in jobs.values}),
    )


def did_you_mean(wrong: object, allowed: tuple[str, ...]) -> str:
    """ " (did you mean 'high'?)", or nothing where no allowed word is near."""
    near = get_close_matches(str(wrong).lower(), allowed, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@dataclass(frozen=True)
class _Section:
    """One TOML table: knows its place, so that every complaint names file, key and value."""

    source: str
    path: tuple[str, ...]
    values: Mapping[str, object]
    allowed: tuple[str, ...] | None  # None: keys are names that the user chose

    def __post_init__(self) -> None:
        for key in self.values:
            if self.allowed is not None and key not in self.allowed:
                hint = did_you_mean(key, self.allowed)
                raise ConfigError(
                    f"config {self.source}: unknown key {self._dotted(key)} = {self.values[key]!r}{hint}: "
                    f"allowed here are {', '.join(self.allowed)}; correct or delete it"
                )

    def get(self, key: str, default: _T, read: Callable[[str, object], _T]) -> _T:
        """The value of ``key`` as ``read`` understands it, or the default where it is absent."""
        if key not in self.values:
            return default
        try:
            return read(self._dotted(key), self.values[key])
        except ConfigError as error:
            raise ConfigError(f"config {self.source}: {error}") from None

    def section(self, key: str, *, allowed: tuple[str, ...] | None) -> "_Section":
        """The table under ``key``, empty where it is absent."""
        return _Section(self.source, (*self.path, key), self.get(key, {}, _table), allowed)

    def _dotted(self, key: str) -> str:
        return ".".join((*self.path, key))


def _job(jobs: _Section, name: str) -> JobConfig:
    try:
        check_name(name)
    except ConfigError as error:
        raise ConfigError(f"config {jobs.source}: jobs.{name}: {error}") from None
    section = jobs.section(name, allowed=("priority", "slo", "target", "weight", "floor"))
    job = JobConfig(
        name=name,
        priority=section.get("priority", None, _priority),
        slo=section.get("slo", None, _slo),
        target=section.get("target", DEFAULT_TARGET, _target),
        weight=section.get("weight", JobConfig.weight, _weight),
        floor=section.get("floor", JobConfig.floor, _progress_floor),
    )
    if job.priority == "low" and job.slo is not None:
        raise ConfigError(
            f"config {jobs.source}: jobs.{name}.slo = {section.values['slo']!r}: "
            "a job of priority 'low' has no SLO; delete slo, or give priority = \"high\""
        )
    for key in ("weight", "floor"):
        if (job.priority == "high" or job.slo is not None) and key in section.values:
            raise ConfigError(
                f"config {jobs.source}: jobs.{name}.{key} = {section.values[key]!r}: is for jobs of priority 'low', "
                'which have no SLO; delete it, or give priority = "low"'
            )
    return job


# Readers: from what TOML holds to what Herald keeps. Each is given the dotted key for its message.


def _table(key: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong(key, value, f"a table: write it as [{key}]")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(key, value, 'text in quotes, as in "strict"')
    return value


def _domain(key: str, value: object) -> str:
    return check_domain(_text(key, value), setting=key)


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false, without quotes")
    return value


def _priority(key: str, value: object) -> Priority:
    if value not in PRIORITIES:
        hint = did_you_mean(value, PRIORITIES)
        raise _wrong(key, value, f'"high" (inference) or "low" (training){hint}')
    return value


def _duration_ns(key: str, value: object) -> int:
    if not isinstance(value, str):
        raise _wrong(key, value, 'a duration in quotes with a unit, such as "50ms"')
    return parse_duration(value, setting=key)


def _slo(key: str, value: object) -> Slo:
    if isinstance(value, Mapping):
        return Slo.parse(value, setting=key)
    return Slo(latency_ns=_duration_ns(key, value))


def _weight(key: str, value: object) -> float:
    return _number(key, value, "a number from 0.001 to 1000", lambda number: 0.001 <= number <= 1000)


def _progress_floor(key: str, value: object) -> float:
    return _number(key, value, "a number from 0 to 0.9", lambda number: 0 <= number <= 0.9)


def _floor(key: str, value: object) -> float:
    return _number(key, value, "a number from 0 to 0.5", lambda number: 0 <= number <= 0.5)


def _max_hold_ns(key: str, value: object) -> int:
    max_hold_ns = _duration_ns(key, value)
    if max_hold_ns < 100_000_000:
        raise _wrong(key, value, "from '100ms': a shorter hold forces gates open in the midst of requests")
    return max_hold_ns


def _quantum_ns(key: str, value: object) -> int:
    quantum_ns = _duration_ns(key, value)
    if not 10_000 <= quantum_ns <= 100_000_000:
        raise _wrong(key, value, "from '10us' to '100ms': less costs more waits, more holds requests up longer")
    return quantum_ns


def _percent(key: str, value: object) -> float:
    allowed = 'a percentage in quotes from "0%" to "100%", such as "10%"'
    if not isinstance(value, str) or not value.endswith("%"):
        raise _wrong(key, value, allowed)
    try:
        percent = float(value[:-1])
    except ValueError:
        raise _wrong(key, value, allowed) from None
    if not 0 <= percent <= 100:
        raise _wrong(key, value, allowed)
    return percent


def _address(key: str, value: object) -> tuple[str, int]:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _wrong(key, value, '"HOST:PORT" with a port from 1 to 65535, such as "127.0.0.1:9464"')
    return host.removeprefix("[").removesuffix("]"), int(port)


def _target(key: str, value: object) -> float:
    # In the table it is a number of millionths; all of them would leave nothing to miss, and nothing to divide by.
    allowed = "a number above 0 and at most 0.999999, such as 0.99"
    return _number(key, value, allowed, lambda number: 0 < number <= MOST_TARGET)


def _number(key: str, value: object, allowed: str, is_allowed: Callable[[float], bool]) -> float:
    # bool is an int to Python, but not to whoever wrote the file; NaN fails every comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_allowed(value):
        raise _wrong(key, value, allowed)
    return float(value)


def _wrong(key: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{key} = {value!r}: allowed is {allowed}")
