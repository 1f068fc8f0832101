"""The options that the experiments' commands share, and the folder for what their processes say."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from herald.durations import parse_duration
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


def add_gpu_index(parser: argparse.ArgumentParser) -> None:
    """--gpu-index."""
    parser.add_argument(
        "--gpu-index",
        type=int,
        metavar="N",
        help="of several GPUs: several experiments may run at once, each on its own",
    )


def add_time_limit(parser: argparse.ArgumentParser) -> None:
    """--time-limit and --resume."""
    parser.add_argument("--time-limit", metavar="DURATION", help="as in 9min: start no run that would end later")
    parser.add_argument("--resume", action="store_true", help="add what is missing in --out to the rows that are there")


def add_pieces(parser: argparse.ArgumentParser) -> None:
    """--time-limit, --resume and --known, of an experiment whose rows may be in several files."""
    add_time_limit(parser)
    parser.add_argument(
        "--known",
        nargs="+",
        type=Path,
        metavar="ROWS",
        help="other files of rows: what is in them is not measured again",
    )


def use_gpu(arguments: argparse.Namespace) -> None:
    """Have every process from now on see the GPU of --gpu-index only. Raises ConfigError where there is none.

    By UUID: an MPS server renumbers its GPUs, so that an index would mean another one to its clients.
    """
    if arguments.gpu_index is None:
        return
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(arguments.gpu_index))
    except pynvml.NVMLError as error:
        raise ConfigError(f"--gpu-index {arguments.gpu_index}: {error}; see `herald doctor`") from error
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid


def end_s(time_limit: str | None) -> float:
    """When to be done, on the monotonic clock."""
    if time_limit is None:
        return float("inf")
    return time.monotonic() + parse_duration(time_limit, setting="--time-limit") / 1e9


def check_resume(path: Path, *, resume: bool) -> None:
    """Raises ConfigError where rows would be added that nobody asked to add to."""
    if path.exists() and not resume:
        raise ConfigError(f"{path} exists: give --resume to add what is missing there, or another --out")


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
