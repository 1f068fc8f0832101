"""The file of a rule: JSON of the format "herald-rule", written by `herald calibrate`, shipped in herald/rules/.

Beside the rule's own fields a file has "fit" (how well it predicts), "provenance" and "note", which are for people.
What the fields may hold is checked here. Knows nothing of what they mean: that is `herald.classify`'s.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from herald.errors import ConfigError

FORMAT = "herald-rule"
VERSION = 1
_MOST = 1e18
FOR_PEOPLE = ("fit", "provenance", "note")

T = TypeVar("T")


class _DamagedError(ValueError):
    """Reads as the end of a sentence that begins with the file's name."""


def read(path: Path, rule_type: type[T]) -> T:
    """The rule in a file. Raises ConfigError, saying what is wrong with it."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"rule {path}: cannot be read ({error.strerror}): give a file of `herald calibrate`"
        ) from error
    try:
        return parse(text, rule_type)
    except _DamagedError as error:
        raise ConfigError(f"rule {path}: {error}: make it again with `herald calibrate`") from error


def write(path: Path, rule: Any, extra: Mapping[str, object]) -> None:
    """Write a rule and what is ``extra`` for people, whole or not at all. Raises ConfigError where it cannot be."""
    document = {"format": FORMAT, "version": VERSION, **asdict(rule), **extra}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"--out {path}: cannot be written ({error.strerror}): give another file") from error


def parse(text: bytes, rule_type: type[T]) -> T:
    """The rule that a text holds. Raises ValueError."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _DamagedError(f"is no JSON, or only the beginning of some ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _DamagedError(f"is no rule: its format must be {FORMAT!r}")
    if document.get("version") != VERSION:
        raise _DamagedError(f"has version {document.get('version')!r}, this Herald reads {VERSION}")
    ignored = {"format", "version", *FOR_PEOPLE}
    rule: T = _record(rule_type, {key: value for key, value in document.items() if key not in ignored}, "the rule")
    return rule


def _record(kind: Any, values: object, place: str) -> Any:
    if not isinstance(values, Mapping):
        raise _DamagedError(f"{place} is {values!r}, not an object")
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for wrong in sorted(values.keys() ^ set(names)):
        raise _DamagedError(f"{place} {'has an unknown' if wrong in values else 'lacks the'} field {wrong!r}")
    try:
        return kind(**{name: _value(hints[name], values[name], name) for name in names})
    except _DamagedError:
        raise
    except ValueError as error:
        raise _DamagedError(f"{place} is impossible ({error})") from error


def _value(kind: Any, value: object, place: str) -> Any:
    if is_dataclass(kind):
        return _record(kind, value, place)
    if kind is str:
        if not isinstance(value, str):
            raise _DamagedError(f"{place} = {value!r}, allowed is text")
        return value
    if kind in (int, float):
        return _number(kind, value, place)
    if not isinstance(value, list):
        raise _DamagedError(f"{place} = {value!r}, allowed is a list")
    return tuple(_value(get_args(kind)[0], item, place) for item in value)


def _number(kind: type, value: object, place: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST:
        if kind is float:
            return float(value)
        if value == int(value):
            return int(value)
    raise _DamagedError(
        f"{place} = {value!r}, allowed is a {'whole ' if kind is int else ''}number from 0 to {_MOST:g}"
    )
