"""The options that the experiments' commands share, and the folder for what their processes say."""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from herald import build, config
from herald.driver import NoDriverError, probe
from herald.durations import parse_duration
from herald.errors import ConfigError
from herald.settings import Settings

if TYPE_CHECKING:
    from herald.experiments.crew import Pair

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


def add_out(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """--out, of a command that ``run`` carries out, once it is known that files can be written there."""
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where files go (default: %(default)s)")

    def checked(arguments: argparse.Namespace) -> int:
        check_out(arguments.out)
        return run(arguments)

    parser.set_defaults(run=checked)


def add_commit(parser: argparse.ArgumentParser) -> None:
    """--commit."""
    parser.add_argument("--commit", help="written into the rows where there is no git repository")


def add_rows_of(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """--seed, --out and --commit, of a command that writes rows; ``run`` carries it out."""
    add_seed(parser)
    add_out(parser, lambda arguments: _checked(run, arguments))
    add_commit(parser)


def _checked(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """``run``, if it will not fail in its jobs and daemons at the environment."""
    config.find()
    if Settings.from_env().disabled:
        raise ConfigError("HERALD_DISABLE = '1': every job would run without Herald, under its name; unset it")
    check_least("--seed", arguments.seed, 0)
    return run(arguments)


def check_least(option: str, value: float, least: float) -> None:
    """Raises ConfigError for less, and for what is not a number."""
    if not value >= least:
        raise ConfigError(f"{option} = {value:g}: give {least:g} or more")


def check_share(option: str, value: float) -> None:
    """Raises ConfigError for what is no share of the device that may be asked for."""
    if not 0 < value < 1:
        raise ConfigError(f"{option} = {value:g}: give a share of the device's time, above 0 and below 1")


def check_rate(rate_hz: float | None) -> None:
    """Raises ConfigError; None is the default."""
    if rate_hz is not None and not 0 < rate_hz < math.inf:
        raise ConfigError(f"--rate = {rate_hz:g}: give requests/s, above 0")


def check_pair(pair: "Pair", device_type: str) -> None:
    """Raises ConfigError for a workload that there is not, or not for that."""
    from herald.experiments import workloads

    workloads.check(pair.inference, "inference", device_type)
    workloads.check(pair.training, "training", device_type)


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


def check_out(folder: Path) -> None:
    """Raises ConfigError where nothing can be written into the folder; it need not exist yet, and is not made."""
    _check_folder(folder, "--out", folder)


def check_file(option: str, file: Path) -> None:
    """Raises ConfigError where the file cannot be written; it is neither made nor changed, nor is its folder."""
    try:
        if not file.exists():
            _check_folder(file.parent, option, file)
        elif file.is_file() or file.is_dir():  # and no pipe, which may wait for its reader
            file.open("ab").close()
    except OSError as error:
        raise _cannot_be_written(option, file, error) from error


def _check_folder(folder: Path, option: str, given: Path) -> None:
    """By making it and removing it again, under another name: access rights do not tell of a file system's own."""
    whole = folder.absolute()
    there = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ConfigError(f"{option} {given}: {there} is not a folder; give another one")
    try:
        with tempfile.TemporaryDirectory(prefix=".herald-", dir=there) as probed:
            (Path(probed) / whole.relative_to(there)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(option, given, error) from error


def _cannot_be_written(option: str, given: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{option} {given}: cannot be written ({error.strerror}); give another {option}")


def check_resume(path: Path, *, resume: bool) -> None:
    """Raises ConfigError where rows would be added that nobody asked to add to."""
    if path.exists() and not resume:
        raise ConfigError(f"{path} exists: give --resume to add what is missing there, or another --out")


@contextmanager
def logs() -> Iterator[Path]:
    """A folder for what processes say, for as long as they live. However this process ends, they and it are gone.

    They find the native libraries built: raises BuildError, once and before any of them starts.
    """
    from herald.experiments import caretaker
    from herald.experiments.interruption import sigterm_interrupts

    for library in build.libraries():
        build.ensure(library)
    with (
        sigterm_interrupts(),
        tempfile.TemporaryDirectory(prefix="herald-experiment-") as folder,
        caretaker.watching(Path(folder)),
    ):
        yield Path(folder)


def check_device(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for a GPU that is not there, and for MPS on a CPU."""
    if arguments.device == "cpu":
        if (mps := getattr(arguments, "mps", None)) not in (None, "off"):
            raise ConfigError(f"--mps {mps} with --device cpu: MPS is for GPUs; leave it out")
        return
    try:
        probe()
    except NoDriverError as error:
        raise ConfigError(f"--device cuda: {error}; see `herald doctor`, or give --device cpu") from error
    import torch

    if torch.version.cuda is None:
        raise ConfigError(
            f"--device cuda: this torch ({torch.__version__}) is built without CUDA: install a CUDA build, or give "
            "--device cpu"
        )
