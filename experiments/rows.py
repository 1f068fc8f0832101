"""Rows: one JSON line per run, appended once and never changed. Everything that is reported comes from them."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from herald.errors import HeraldError

Row = dict[str, Any]


class RowsError(HeraldError):
    """A file of rows is missing or holds something else."""


def read(path: Path) -> list[Row]:
    """The rows of a file, none if there is no file. A last line that was cut off while writing is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RowsError(f"rows {path}: cannot be read ({error}); give a file that an experiment wrote") from error
    return [_parse(line, path, number) for number, line in enumerate(lines[:-1], start=1) if line.strip()]


def read_all(paths: Sequence[Path]) -> list[Row]:
    """The rows of several files or of the *.jsonl files in folders. Raises RowsError where there are none."""
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise RowsError(f"rows {', '.join(missing)}: no such file or folder; give the files that experiments wrote")
    found = [row for file in files for row in read(file)]
    if not found:
        raise RowsError(f"rows {', '.join(map(str, paths))}: no rows in there; run an experiment first")
    return found


def append(path: Path, rows: Iterable[Row]) -> None:
    """Append rows and have them on the disk. Raises RowsError where they cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _drop_unfinished_line(file.fileno())
            for row in rows:
                file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RowsError(f"rows {path}: cannot be written ({error.strerror}); give another --out") from error


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows that one experiment wrote."""
    return [row for row in rows if row["kind"] == kind]


def _parse(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowsError(f"{path}, line {number}: not JSON ({error}); delete the line or give another file") from error
    if not isinstance(row, dict) or "kind" not in row:
        raise RowsError(f"{path}, line {number}: not a row of an experiment (no 'kind'); give another file")
    return row


def _drop_unfinished_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    content = os.pread(fd, size, 0)
    os.ftruncate(fd, content.rfind(b"\n") + 1)
