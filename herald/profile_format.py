"""The text of a profile: version 2 of the format "herald-profile", described in docs/profile-format.md.

JSON with one op, one kernel and one op instance per line, so that two profiles can be compared with `diff`. The
fields are those of the dataclasses in `herald.profiles`; what they may hold is checked here, so that no reader of a
profile has to. Knows nothing of files.
"""

import functools
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

FORMAT = "herald-profile"
VERSION = 2

_DAY_NS = 24 * 3600 * 1_000_000_000
_MOST_COUNT = 2**63 - 1
_KEY_DIGITS = 16
# What a number may be at most, by field; all are >= 0.
_MOST = {
    "self_ns": 2**32 - 1,  # as the hook keeps it: 4.3 s
    "begin_ns": _DAY_NS,
    "host_ns": _DAY_NS,
    "wall_ns": _DAY_NS,
    "device_ns": _DAY_NS,
    "duration_ns": _DAY_NS,
    "calls": 1e9,
    "occupancy": 1.0,
    "harm": 1e6,
}

T = TypeVar("T")


class FormatError(ValueError):
    """The text is no profile of this version; reads as the end of a sentence that begins with the file's name."""


def dump(profile: Any) -> str:
    """The text of a `herald.profiles.Profile`."""
    head = {"format": FORMAT, "version": VERSION} | _encoded(profile, leave_out={"ops", "iteration"})
    lines = [f" {json.dumps(name)}: {_line(value)}" for name, value in head.items()]
    lines.append(' "ops": [\n' + ",\n".join(_op_lines(op) for op in profile.ops) + "\n ]")
    if profile.iteration is not None:
        lines.append(' "iteration": ' + _iteration_lines(profile.iteration))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def parse(text: bytes, profile_type: type[T]) -> T:
    """The profile that a text holds. Raises FormatError."""
    document = _json(text)
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise FormatError(f"is not a Herald profile: its format must be {FORMAT!r}")
    version = document.pop("version", None)
    if version != VERSION:
        raise FormatError(
            f"was made for version {version!r} of the format, this Herald reads version {VERSION}: "
            "make it again with `herald profile`"
        )
    try:
        profile: T = _decoded(profile_type, document, "the profile")
        _check_ops(profile)
        _check_order(profile)
    except ValueError as e:
        raise FormatError(f"is damaged ({e}): make it again with `herald profile`") from e
    return profile


# Writing --------------------------------------------------------------------------------------------------------------


def _encoded(record: Any, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    named = {field.name: getattr(record, field.name) for field in fields(record) if field.name not in leave_out}
    return {name: f"{value:0{_KEY_DIGITS}x}" if name == "key" else value for name, value in named.items()}


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _op_lines(op: Any) -> str:
    line = _line(_encoded(op, leave_out={"kernels"}))
    if not op.kernels:
        return f"  {line}"
    kernels = ",\n".join(f"   {_line(_encoded(kernel))}" for kernel in op.kernels)
    return f'  {line[:-1]}, "kernels": [\n{kernels}]}}'


def _iteration_lines(iteration: Any) -> str:
    line = _line(_encoded(iteration, leave_out={"instances"}))
    instances = ",\n".join(f"  {_line(_encoded(instance))}" for instance in iteration.instances)
    return f'{line[:-1]}, "instances": [\n{instances}\n ]}}'


# Reading --------------------------------------------------------------------------------------------------------------


def _json(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as e:
        raise FormatError(f"is not whole JSON ({e}): make it again with `herald profile`") from e
    except (ValueError, RecursionError) as e:
        raise FormatError(f"is damaged ({e}): make it again with `herald profile`") from e


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    read = dict(pairs)
    if len(read) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{twice!r} stands twice in one object")
    return read


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number that can be measured")


def _decoded(kind: Any, value: object, where: str) -> Any:
    """The value as the type hint ``kind`` wants it. Raises ValueError, naming ``where`` it stands."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _decoded_record(kind, value, where)
    if origin in (Union, types.UnionType):  # X | None
        return None if value is None else _decoded(inner[0], value, where)
    if origin is tuple:
        return _decoded_tuple(inner, value, where)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where} = {value!r} must be one of {', '.join(inner)}")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"{where} = {value!r} must be a text")
        return value
    return _decoded_number(kind, value, where)


def _decoded_record(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} = {value!r} must be an object")
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    if strange := value.keys() - known.keys():
        raise ValueError(f"{where} has the unknown field {min(strange)!r}")
    missing = [name for name, field in known.items() if field.default is MISSING and name not in value]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}")
    hints = _hints(kind)
    return kind(**{name: _decoded_field(hints[name], name, part, where) for name, part in value.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decoded_field(kind: Any, name: str, value: object, where: str) -> Any:
    return _key(value, where) if name == "key" else _decoded(kind, value, f"{name} of {where}")


def _decoded_tuple(inner: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} = {value!r} must be a list")
    if inner[-1] is not Ellipsis and len(value) != len(inner):
        raise ValueError(f"{where} = {value!r} must have {len(inner)} elements")
    name = where.partition(" ")[0]
    return tuple(_decoded(inner[0], item, _place(name, i, item)) for i, item in enumerate(value))


def _place(name: str, index: int, item: object) -> str:
    signature = item.get("signature") if isinstance(item, Mapping) else None
    return f"{name}[{index}]" + (f" ({signature})" if signature else "")


def _decoded_number(kind: type[int] | type[float], value: object, where: str) -> int | float:
    allowed = (int,) if kind is int else (int, float)
    most = _MOST.get(where.partition(" ")[0], _MOST_COUNT)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 <= value <= most:
        raise ValueError(f"{where} = {value!r} must be a {'whole ' * (kind is int)}number in 0 .. {most:.0f}")
    return value


def _key(value: object, where: str) -> int:
    try:
        if not isinstance(value, str) or len(value) != _KEY_DIGITS:
            raise ValueError
        return int(value, 16)
    except ValueError:
        raise ValueError(f"key of {where} = {value!r} must be {_KEY_DIGITS} hexadecimal digits") from None


def _check_ops(profile: Any) -> None:
    seen: dict[int, str] = {}
    for op in profile.ops:
        if op.key in seen:
            raise ValueError(f"{op.signature} has the key of {seen[op.key]}: an op signature must be listed once")
        seen[op.key] = op.signature


def _check_order(profile: Any) -> None:
    """Instances refer to ops that there are and stand in the order of the data flow, so that it has no cycle."""
    before_ns = 0
    for i, instance in enumerate(profile.iteration.instances if profile.iteration else ()):
        if instance.op >= len(profile.ops):
            raise ValueError(f"instances[{i}] refers to op {instance.op} of {len(profile.ops)}")
        if instance.begin_ns < before_ns:
            raise ValueError(
                f"instances[{i}] begins at {instance.begin_ns} ns, before the one above it at {before_ns} ns: "
                "their order is the data flow, which would have a cycle"
            )
        before_ns = instance.begin_ns
