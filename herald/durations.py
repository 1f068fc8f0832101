"""Durations as people write them ("50ms") and as Herald keeps them (integer nanoseconds)."""

import re

from herald.errors import ConfigError

_NS_PER_UNIT = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000}
_PATTERN = re.compile(r"([+-]?[0-9]*\.?[0-9]+)\s*([a-zµ]*)", re.ASCII | re.IGNORECASE)
_LONGEST_NS = 24 * 3600 * 1_000_000_000


def parse_duration(text: str, *, setting: str = "duration") -> int:
    """Nanoseconds of a positive duration with a unit: "250us", "50ms", "1.5s", "2min".

    Raises ConfigError, naming ``setting``, for a missing unit, a value that is not positive, or more than a day.
    """
    allowed = "a positive number with a unit, such as '250us', '50ms', '1.5s' or '2min'"
    match = _PATTERN.fullmatch(text.strip().replace("\u03bc", "\u00b5")) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"{setting} = {text!r} is not a duration: give {allowed}")
    number, unit = match.groups()
    if not unit:
        raise ConfigError(f"{setting} = {text!r} has no unit: give {allowed}")
    if unit not in _NS_PER_UNIT:
        raise ConfigError(f"{setting} = {text!r} has the unknown unit {unit!r}: give {allowed}")
    value_ns = float(number) * _NS_PER_UNIT[unit]
    if value_ns > _LONGEST_NS:  # infinity, too, which cannot be rounded
        raise ConfigError(f"{setting} = {text!r} is longer than a day: give {allowed}")
    if round(value_ns) <= 0:
        raise ConfigError(f"{setting} = {text!r} is not positive: give {allowed}")
    return round(value_ns)


def format_ns(value_ns: int | float) -> str:
    """A duration in the unit that reads best, with three significant digits: "52.3 ms"."""
    for unit in ("s", "ms", "us"):
        value = value_ns / _NS_PER_UNIT[unit]
        if abs(value) >= 0.9995:  # what rounds to 1000 of a unit is 1 of the next
            return f"{value:.3g} {unit}" if abs(value) < 999.5 else f"{value:.0f} {unit}"
    return f"{value_ns:.0f} ns"
