"""`herald profile`: profiles a step function or a whole program, in a process of its own, and shows the result.

This process only watches and prints; it loads no torch.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from herald.bootstrap import PythonCommand
from herald.durations import parse_duration
from herald.errors import ConfigError
from herald.profile_format import FORMAT
from herald.profile_process import Order, ProfileProcess
from herald.profile_summary import render
from herald.profiles import Profile


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`herald profile`."""
    parser = subparsers.add_parser(
        "profile",
        help="measure every op of a job, for its graph and its classes",
        usage="herald profile FILE.py:FUNCTION -o PROFILE [options]\n"
        "       herald profile -o PROFILE [options] -- python train.py ...",
        epilog="FUNCTION() returns a step function, which runs one iteration each time that it is called, or a pair of "
        "it and the model. Of a program an iteration is from one step of its first optimizer to the next; the program "
        "then goes on to its end. Profile alone: what else uses the device is in the times.",
    )
    parser.add_argument("-o", "--output", required=True, metavar="PROFILE", help="the file to write, .json")
    parser.add_argument("--iterations", type=int, default=10, metavar="N", help="to measure (default: %(default)d)")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="to run before (default: %(default)d)")
    parser.add_argument("--limit", default="120s", metavar="DURATION", help="until the profile is written (120s)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: the model's, else the GPU")
    parser.add_argument("--workload", metavar="NAME", help="written into the profile; default: the program's name")
    parser.add_argument("--stop", action="store_true", help="end the program once the profile is written")
    parser.add_argument("what", nargs="*", metavar="WHAT", help="FILE.py:FUNCTION, or -- and a program")
    parser.set_defaults(run=_profile)


def _profile(arguments: argparse.Namespace) -> int:
    order, interpreter, target = _order(arguments)
    _make_room(Path(order.output))
    with ProfileProcess(order, interpreter, target) as process:
        if process.wait_for_profile():
            render(Profile.load(order.output), order.output, Console())
        return process.wait()


def _make_room(output: Path) -> None:
    """An old profile must not pass for the new one. Raises ConfigError where none can be written."""
    folder = output.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"--output = {str(output)!r}: {folder} is no folder that can be written to")
    try:
        if output.exists() and not _is_profile(output):
            raise ConfigError(f"--output = {str(output)!r} is there and is no profile: give another file, or remove it")
        output.unlink(missing_ok=True)
    except OSError as e:
        raise ConfigError(f"--output = {str(output)!r} cannot be replaced: {e.strerror}") from e


def _is_profile(path: Path) -> bool:
    """Whether a file is empty, or says at its beginning that it is a profile, of whatever version."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(200)
    return not begin.strip() or FORMAT.encode() in begin


def _order(arguments: argparse.Namespace) -> tuple[Order, list[str], Sequence[str]]:
    """The order, the Python to run it with, and the program's own words. Raises ConfigError."""
    words = arguments.what[1:] if arguments.what[:1] == ["--"] else arguments.what
    order = Order(
        output=arguments.output,
        function=None,
        warmup=arguments.warmup,
        iterations=arguments.iterations,
        limit_ns=parse_duration(arguments.limit, setting="--limit"),
        device=arguments.device,
        workload=arguments.workload or "",
        stop=arguments.stop,
    )
    if len(words) == 1 and ":" in words[0]:
        path = words[0].rpartition(":")[0]
        if not Path(path).is_file():
            raise ConfigError(f"{words[0]!r}: there is no file {path!r}")
        order = replace(order, function=words[0], workload=order.workload or Path(path).stem)
        return order, [sys.executable], ()
    python = PythonCommand.parse(words) if words else None
    if python is None:
        said = f"{' '.join(words)!r} is no Python program" if words else "nothing to profile"
        raise ConfigError(
            f"herald profile: {said}: give FILE.py:FUNCTION, where FUNCTION() returns a step function, or a Python "
            "program after --, as in `herald profile -o PROFILE -- python train.py`"
        )
    if not python.target[0].startswith("-") and not Path(python.target[0]).exists():
        raise ConfigError(f"herald profile: {python.target[0]}: no such file")
    order = replace(order, workload=order.workload or python.title)
    return order, [python.interpreter, *python.options], python.target
