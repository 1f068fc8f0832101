"""`herald run`: an unmodified Python program as a job of a domain.

`herald run` becomes the program (exec), so signals, exit code, terminal and process id are the program's own.
A Python program starts through `python -m herald.bootstrap`, which attaches the process and then runs the
target as `python` would have: the op hook is process-wide and needs no model.
"""

import argparse
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

import herald
from herald.config import PRIORITIES, choose_domain
from herald.domains import segment_name
from herald.driver import NoDriverError, probe
from herald.errors import ConfigError, HeraldError
from herald.launch import launch_env, use_idle_class
from herald.table import Table

_INTERPRETER = re.compile(r"python(\d+(\.\d+)*)?")
_OPTIONS_WITH_VALUE = "WX"
_OPTIONS_WITH_TARGET = "mc"
_LACKS_HERALD = 77  # an exit code that no interpreter has of its own
_LOOK = f"""import importlib.util, sys
there = all(importlib.util.find_spec(name) for name in ("herald", "herald.bootstrap"))
sys.exit(0 if there else {_LACKS_HERALD})"""


@dataclass(frozen=True)
class PythonCommand:
    """`python OPTIONS TARGET`, where TARGET is `script.py ...`, `-m module ...` or `-c code ...`."""

    interpreter: str
    options: tuple[str, ...]
    target: tuple[str, ...]

    @property
    def title(self) -> str:
        """What to call the program: the script's or the module's name."""
        if self.target[0] == "-c":
            return "python"
        return self.target[1] if self.target[0] == "-m" else Path(self.target[0]).stem

    @classmethod
    def parse(cls, command: Sequence[str]) -> Self | None:
        """The parts of a command; None where it is not a Python program (or an interactive one)."""
        if command[0].endswith(".py"):
            return cls(sys.executable, (), tuple(command))
        if not _INTERPRETER.fullmatch(Path(command[0]).name):
            return None
        options: list[str] = []
        words = list(command[1:])
        while words and words[0].startswith("-") and words[0] != "-":
            target = _take_option(words, options)
            if target:
                return cls(command[0], tuple(options), target)
        return cls(command[0], tuple(options), tuple(words)) if words and words[0] != "-" else None


def _take_option(words: list[str], options: list[str]) -> tuple[str, ...] | None:
    """Move one word of options, with its value, from ``words`` to ``options``; or return the target it names.

    Short options may be joined as in `python -um module`, with the value in the same word or the next.
    """
    word = words.pop(0)
    if word.startswith("--"):
        options.append(word)
        return None
    for place, letter in enumerate(word[1:], start=1):
        value = word[place + 1 :]
        if letter in _OPTIONS_WITH_TARGET:
            if place > 1:
                options.append(word[:place])
            return (f"-{letter}", *([value] if value else []), *words)
        if letter in _OPTIONS_WITH_VALUE:
            options.append(word)
            if not value and words:
                options.append(words.pop(0))
            return None
    options.append(word)
    return None


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`herald run`."""
    parser = subparsers.add_parser(
        "run",
        help="run a program as a job of a domain, unmodified",
        usage="herald run --priority low [options] -- python train.py ...",
        epilog="With priority high only the environment is prepared: what a request is, and its SLO, only the service "
        'knows and says with herald.attach(model, priority="high", slo="50ms").',
    )
    parser.add_argument("--priority", choices=PRIORITIES, required=True, help="low: training; high: inference")
    parser.add_argument("--name", help="of the low-priority job; default: the program's name")
    parser.add_argument("--domain", help="default: HERALD_DOMAIN, else 'default'")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the program computes")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the program with its arguments")
    parser.set_defaults(run=_become)


def _become(arguments: argparse.Namespace) -> int:
    """Replace this process by the program. Returns only by raising."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise ConfigError("herald run: no program: write it last, as in `herald run --priority low -- python train.py`")
    domain = choose_domain(arguments.domain)
    device = _device(arguments.device)
    environment = os.environ | launch_env(arguments.priority, device, _mps_pipe(domain)) | {"HERALD_DOMAIN": domain}
    words = command
    if arguments.priority == "low":
        python = _python(command)
        _check_has_herald(python)
        words = attached(python, domain, arguments.name)
        if device == "cpu":
            use_idle_class()
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        raise ConfigError(f"herald run: cannot start {words[0]!r}: {error.strerror}") from error


def _python(command: Sequence[str]) -> PythonCommand:
    python = PythonCommand.parse(command)
    if python is None:
        raise ConfigError(
            f"herald run: {' '.join(command)!r} is not a Python program: give `python script.py`, `python -m module` "
            'or a script.py; a program of another kind can call herald.attach(priority="low") itself'
        )
    return python


def attached(python: PythonCommand, domain: str, name: str | None) -> list[str]:
    """The command that runs a Python program as a low-priority job."""
    return [
        python.interpreter,
        *python.options,
        "-m",
        "herald.bootstrap",
        domain,
        python.title if name is None else name,
        *python.target,
    ]


def _check_has_herald(python: PythonCommand) -> None:
    """Raises ConfigError. Without it another interpreter would only say that it finds no `herald.bootstrap`."""
    found = shutil.which(python.interpreter)
    if found is None or found == sys.executable:
        return
    try:
        done = subprocess.run(
            [found, *python.options, "-c", _LOOK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return  # which the program's own start tells
    if done.returncode == _LACKS_HERALD:
        raise ConfigError(
            f"herald run: {found} has no herald: install it there, or run the program with {sys.executable}"
        )


def _device(wanted: str) -> Literal["cpu", "cuda"]:
    if wanted == "cpu":
        return "cpu"
    try:
        probe()
    except NoDriverError as error:
        if wanted == "cuda":
            raise ConfigError(f"herald run: --device cuda: {error}; see `herald doctor`") from error
        return "cpu"
    return "cuda"


def _mps_pipe(domain: str) -> str | None:
    """The MPS that the domain's daemon published, if there is one."""
    if not (Path("/dev/shm") / segment_name(domain)[1:]).exists():
        return None
    return Table.open(domain, create=False).header.mps_pipe.decode() or None


# From here on inside the program's own process: `python -m herald.bootstrap DOMAIN NAME TARGET...`.


def main(domain: str, name: str, target: Sequence[str]) -> None:
    """Attach this process as a low-priority job, then run the target as `python` would have.

    A target that attaches itself takes the place of that job.
    """
    if not target[0].startswith("-") and not Path(target[0]).exists():
        print(f"herald: error: herald run: {target[0]}: no such file", file=sys.stderr)
        raise SystemExit(2)
    try:
        attach_stand_in(domain, name)
    except HeraldError as error:
        print(f"herald: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # The job is detached at exit (`detach_all`) and not here: threads may go on training when the main one is done.
    run_target(target)


def attach_stand_in(domain: str, name: str) -> herald.Job:
    """The job of this process, until its program attaches one itself."""
    from herald.hooks.trainer import LowJob

    job = herald.attach(priority="low", name=name, domain=domain)
    if isinstance(job, LowJob):  # else Herald is disabled
        job.again = partial(attach_stand_in, domain, name)
    return job


def run_target(target: Sequence[str]) -> None:
    """Run `script.py ...`, `-m module ...` or `-c code ...` as the main program of this process."""
    if target[0] == "-m":
        sys.argv = list(target[1:])
        runpy.run_module(target[1], run_name="__main__", alter_sys=True)
    elif target[0] == "-c":
        sys.argv = ["-c", *target[2:]]
        _run_main(target[1], "<string>")
    else:
        sys.argv = list(target)
        if not sys.flags.safe_path:  # `python -m` put the working directory there
            sys.path[0] = str(Path(target[0]).resolve().parent)
        if target[0].endswith(".py"):
            with io.open_code(target[0]) as file:
                _run_main(file.read(), target[0], __file__=target[0])
        else:  # a folder, an archive, whatever else `python` runs
            runpy.run_path(target[0], run_name="__main__")


def _run_main(source: str | bytes, title: str, **names: str) -> None:
    """As `__main__` for good: unlike `runpy`'s, so that threads and exit handlers can pickle what it defines."""
    program = types.ModuleType("__main__")
    program.__dict__.update(names)
    sys.modules["__main__"] = program
    exec(compile(source, title, "exec"), program.__dict__)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
