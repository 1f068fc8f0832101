"""What a worker can measure inside its own process, by name. Each has a module of its own, imported when asked for.

An instrument is a function of the worker's `Session` and plain fields, and answers with plain data.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from herald.errors import ConfigError

Instrument = Callable[..., dict[str, object]]

INSTRUMENTS: Mapping[str, str] = {
    "busy-times": "herald.experiments.busy_times",
    "device-share": "herald.experiments.device_share",
    "gate-closer": "herald.experiments.gate_closer",
    "op-trace": "herald.experiments.op_trace",
    "profile": "herald.experiments.op_profile",
    "record": "herald.experiments.recording",
    "training-ops": "herald.experiments.training_ops",
}


def get(name: str) -> Instrument:
    """The instrument of that name: its module's `measure`. Raises ConfigError."""
    if name not in INSTRUMENTS:
        raise ConfigError(f"instrument = {name!r}: allowed are {', '.join(INSTRUMENTS)}")
    instrument: Any = import_module(INSTRUMENTS[name]).measure
    return instrument  # type: ignore[no-any-return]
