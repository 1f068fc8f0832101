"""`herald`: finds the module that owns a command, and says errors in one clean line.

Commands live where their subject lives; a module is imported only when its command is used, so that `herald
status` does not wait for torch. Every owner has `add_parsers(subparsers)`; its parsers set `run`, a function
from arguments to exit code.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from typing_extensions import override

import herald
from herald.config import did_you_mean
from herald.errors import HeraldError
from herald.settings import Settings

EXIT_ERROR = 2  # also argparse's own
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell says it


class Command(NamedTuple):
    """A command as `herald --help` lists it."""

    name: str
    owner: str  # module
    help: str


COMMANDS = (
    Command("demo", "herald.experiments.cli", "colocate inference and training here, and show what Herald does"),
    Command("daemon", "herald.scheduler.daemon", "own a domain: policy, limits, MPS"),
    Command("run", "herald.bootstrap", "run a program as a job of a domain, unmodified"),
    Command("profile", "herald.profiling", "measure every op of a job, for its graph and its classes"),
    Command("graph", "herald.graphs.command", "show the data flow of a profile: summary, GraphML, JSON, pictures"),
    Command("status", "herald.status", "show a domain: daemon, jobs, SLO attainment"),
    Command("doctor", "herald.doctor", "check what this machine can do, and say what to do about each no"),
    Command("build", "herald.housekeeping", "build the native libraries ahead of time"),
    Command("reset", "herald.housekeeping", "remove a domain's shared table"),
    Command("calibrate", "herald.experiments.calibration.command", "measure what ops do to a request beside them"),
    Command("experiment", "herald.experiments.cli", "measure colocations and report on them"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Raises SystemExit where argparse does (--help, bad usage)."""
    try:
        arguments = _parse(sys.argv[1:] if argv is None else list(argv))
        logging.basicConfig(
            level=Settings.from_env().log_level.upper(),
            format="%(asctime)s %(levelname)s %(message)s",
            datefmt="%H:%M:%S",
            stream=sys.stderr,
        )
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # a reader that went away is noticed here, not at interpreter exit
    except HeraldError as error:
        if os.environ.get("HERALD_LOG", "").lower() == "debug":
            traceback.print_exc()
        print(f"herald: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `herald status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


class _Parser(argparse.ArgumentParser):
    """Refuses a word that it does not know itself: argparse leaves that to the outermost parser, with its usage.

    Parsers of commands are of this class, too: `add_subparsers` makes them of its own parser's.
    """

    @override
    def parse_known_args(self, *args: Any, **named: Any) -> Any:
        found, unknown = super().parse_known_args(*args, **named)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown)}")
        return found, unknown

    def _hint(self, unknown: Sequence[str]) -> str:
        names = tuple(self._option_string_actions)
        hints = [did_you_mean(word.partition("=")[0], names) for word in unknown if word.startswith("--")]
        return next(filter(None, hints), f"; see `{self.prog} --help`")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse with the real parser of the command that is used and a title for each of the others."""
    parser = _Parser(prog="herald", description="Share one GPU between inference with an SLO and best-effort training.")
    parser.add_argument("--version", action="version", version=f"herald {herald.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    used = next((word for word in words if not word.startswith("-")), None)
    for owner in {command.owner for command in COMMANDS if command.name == used}:
        import_module(owner).add_parsers(subparsers)
    for command in COMMANDS:
        if command.name not in subparsers.choices:
            subparsers.add_parser(command.name, help=command.help)
    return parser.parse_args(words)
