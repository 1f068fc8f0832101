"""The options that the experiments' commands share, and the folder for what their processes say."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from herald.errors import ConfigError

OUT = Path("out")
DEVICES = ("cpu", "cuda")


def add_device(parser: argparse.ArgumentParser, default: str) -> None:
    """--device."""
    parser.add_argument("--device", choices=DEVICES, default=default, help="default: %(default)s")


def add_mps(parser: argparse.ArgumentParser) -> None:
    """--mps off or on."""
    parser.add_argument("--mps", choices=("off", "on"), default="off", help="under an MPS of its own (default: off)")


def add_workloads(parser: argparse.ArgumentParser) -> None:
    """--workload, repeated."""
    parser.add_argument("--workload", action="append", metavar="NAME", help="may be repeated; default: the device's")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """--seed."""
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and arrivals (default: 0)")


def add_out(parser: argparse.ArgumentParser) -> None:
    """--out."""
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where files go (default: %(default)s)")


def add_commit(parser: argparse.ArgumentParser) -> None:
    """--commit."""
    parser.add_argument("--commit", help="written into the rows where there is no git repository")


def add_rows_of(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """--seed, --out and --commit, of a command that writes rows; ``run`` carries it out."""
    add_seed(parser)
    add_out(parser)
    add_commit(parser)
    parser.set_defaults(run=run)


@contextmanager
def logs() -> Iterator[Path]:
    """A folder for what processes say, for as long as they live."""
    from herald.experiments.interruption import sigterm_interrupts

    with sigterm_interrupts(), tempfile.TemporaryDirectory(prefix="herald-experiment-") as folder:
        yield Path(folder)


def check_mps(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for MPS on a CPU."""
    if arguments.device == "cpu" and arguments.mps != "off":
        raise ConfigError(f"--mps {arguments.mps} with --device cpu: MPS is for GPUs; leave it out")
