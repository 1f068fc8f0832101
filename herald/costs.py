"""Costs of ops as a file: what a job has learnt, so that the next run need not learn it again.

The seam to the offline profiler: it writes the same file, with more in it.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from herald.errors import ConfigError

FORMAT = "herald-profile"
VERSION = 1


@dataclass(frozen=True)
class OpCost:
    """One op signature: name, shapes, dtypes, memory format."""

    signature: str  # for people: "aten::addmm(Float[128], Float[32, 784], Float[784, 128])"
    key: int  # its 64-bit hash, by which the hook finds it
    self_ns: int  # device time without the ops it calls
    numel: int  # elements of all tensor inputs
    kind: str = "unknown"  # "none", "light", "heavy": told by the rule, written for people


@dataclass(frozen=True)
class OpCosts:
    """The costs of a job's ops on one device under one torch."""

    device: str
    torch: str
    ops: tuple[OpCost, ...]

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all. Raises ConfigError when the folder cannot be written."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        document = {
            "format": FORMAT,
            "version": VERSION,
            "device": self.device,
            "torch": self.torch,
            "ops": [asdict(op) | {"key": f"{op.key:016x}"} for op in self.ops],
        }
        try:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as e:
            partial.unlink(missing_ok=True)
            raise ConfigError(f"profile = {str(path)!r} cannot be written: {e.strerror}") from e

    @classmethod
    def load(cls, path: str | Path, *, device: str, torch: str) -> Self:
        """Read a file made on this device under this torch. Raises ConfigError saying what is wrong with it."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as e:
            raise ConfigError(f"profile = {str(path)!r} cannot be read: {e.strerror}") from e
        except ValueError as e:
            raise ConfigError(f"profile = {str(path)!r} is not whole JSON ({e}): make it again") from e
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ConfigError(f"profile = {str(path)!r} is not a Herald profile: its format must be {FORMAT!r}")
        expected = {"version": VERSION, "device": device, "torch": torch}
        for field, value in expected.items():
            if document.get(field) != value:
                raise ConfigError(
                    f"profile = {str(path)!r} was made for {field} {document.get(field)!r}, this is {value!r}: "
                    "leave it out to learn anew, or make it again here"
                )
        try:
            ops = tuple(_read_op(op) for op in document["ops"])
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(f"profile = {str(path)!r} is damaged ({type(e).__name__}: {e}): make it again") from e
        return cls(device, torch, ops)


def _read_op(op: Mapping[str, object]) -> OpCost:
    self_ns, numel = op["self_ns"], op["numel"]
    if not isinstance(self_ns, int | float) or not math.isfinite(self_ns) or not 0 <= self_ns < 2**32:
        raise ValueError(f"self_ns = {self_ns!r} of {op['signature']!r} must be in 0 .. 4294967295 ns")
    if not isinstance(numel, int) or numel < 0:
        raise ValueError(f"numel = {numel!r} of {op['signature']!r} must be a whole number of elements")
    return OpCost(str(op["signature"]), int(str(op["key"]), 16), round(self_ns), numel, str(op.get("kind", "unknown")))
