"""What a service promises of a request: how a person says it, and how Herald keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from herald.durations import parse_duration
from herald.errors import ConfigError

SloSpec = str | Mapping[str, str]  # "50ms", or {"latency": "2s", "ttft": "200ms", "tpot": "30ms"}: any of the three


@dataclass(frozen=True)
class Slo:
    """The promises of a request; it meets its SLO when every part given holds. 0: not promised."""

    latency_ns: int = 0  # arrival -> done
    ttft_ns: int = 0  # arrival -> first token
    tpot_ns: int = 0  # mean time per further token

    @classmethod
    def parse(cls, spec: SloSpec, *, setting: str = "slo") -> Self:
        """What ``spec`` says; a plain duration is a latency. Raises ConfigError, naming ``setting``."""
        if not isinstance(spec, Mapping):
            return cls(latency_ns=parse_duration(spec, setting=setting))
        parts = tuple(field.name.removesuffix("_ns") for field in fields(cls))
        allowed = f'a duration such as "50ms", or a map of one or more of {", ".join(parts)} to durations'
        for key in spec:
            if key not in parts:
                raise ConfigError(f"{setting}.{key} = {spec[key]!r}: there is no such part; give {allowed}")
        if not spec:
            raise ConfigError(f"{setting} = {{}}: promises nothing; give {allowed}")
        return cls(**{f"{key}_ns": parse_duration(value, setting=f"{setting}.{key}") for key, value in spec.items()})

    def __bool__(self) -> bool:
        """Whether anything is promised."""
        return bool(self.latency_ns or self.ttft_ns or self.tpot_ns)


NO_SLO = Slo()

# What an SLO of each part is of, to be put behind its duration: "an SLO of 30 ms per output token".
OF_PART = {"latency": "", "ttft": " to the first token", "tpot": " per output token"}
