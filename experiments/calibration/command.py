"""`herald calibrate`: from words to rows and, from rows, to the rule of this device."""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from herald.durations import parse_duration
from herald.errors import ConfigError

if TYPE_CHECKING:
    from herald.experiments.calibration.collect import Options
    from herald.experiments.rows import Row

KIND = "calibration"
OUT = Path("out/calibration.json")
_COLUMNS = {"compute": "compute", "memory": "memory", "small": "small", "small-normal": "small-n"}  # by kind of request


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = subparsers.add_parser("calibrate", help="measure what ops do to a request beside them, on this device")
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="FILE",
        help="the rule; rows beside it as .jsonl (default: %(default)s)",
    )
    parser.add_argument(
        "--fit-only", type=Path, nargs="+", metavar="ROWS", help="measure nothing: the rule of these rows"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--mps", choices=("on", "off", "both"), help="MPS states (default: both on a GPU)")
    parser.add_argument(
        "--seconds-per-op", type=float, default=0.3, help="of requests beside it (default: %(default)g)"
    )
    parser.add_argument("--limit", default="8min", metavar="DURATION", help="begin no op later (default: %(default)s)")
    parser.add_argument("--workload", action="append", metavar="NAME", help="whose ops to add; may be repeated")
    parser.add_argument("--only", default="", metavar="TEXT", help="ops whose label contains it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="written into the rows where there is no git repository")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure what is missing in the rows, then fit the rule to all of them."""
    from herald.experiments import rows
    from herald.experiments.options import check_file

    check_file("--out", arguments.out)
    if arguments.fit_only:
        _fit(rows.of_kind(rows.read_all(arguments.fit_only), KIND), arguments)
        return 0
    path: Path = arguments.out.with_suffix(".jsonl")
    _measure(path, arguments)
    print(f"rows in {path}")
    found = rows.of_kind(rows.read(path), KIND)
    if any(row["mps"] for row in found):
        _fit(found, arguments)
    else:
        print("no rule: it is of GPUs under MPS; without, ops take turns and none is light")
    return 0


class Progress:
    """What a terminal of 80 columns is told of a calibration, in lines."""

    def __init__(self, states: Sequence[bool], limit: str) -> None:
        self._states = states
        self._limit = limit
        self._shown: bool | None = None  # the MPS state whose heading was last
        self._place = 0
        self._missing = 0

    @property
    def left(self) -> int:
        """How many rows are still missing."""
        return self._missing - self._place

    def begin(self, ops: int, missing: int) -> str:
        """Before the first row: how much there is to do, and what the columns mean."""
        self._missing = missing
        there = ops * len(self._states) - missing
        states = " and ".join(map(_state, self._states))
        return (
            f"{ops} ops, {states}: {missing} to measure{f', {there} are there already' if there else ''}\n"
            f"at most {self._limit} in all (--limit); the kernels of the ops are looked up first\n"
            "us: time of the op; then by how many percent each kind of request is slower\n"
            "beside it (at the median; small-n: small, on a stream of normal priority)"
        )

    def lines(self, row: "Row") -> Iterator[str]:
        """A measured op; before the first of an MPS state a heading."""
        self._place += 1
        if row["mps"] != self._shown:
            self._shown = row["mps"]
            columns = "".join(f" {name:>7}" for name in _COLUMNS.values())
            yield f"{_state(row['mps']):10} {'op':28}{'us':>8}{columns}"
        name = _cut(row["op"].replace("aten::", ""), 28)
        counted = f"{self._place:>3} of {self._missing:<3}"
        if "skipped" in row:
            yield f"{counted} {name:28} {_cut('skipped: ' + row['skipped'], 39)}"
            return
        harm = "".join(f" {row['probes'][kind]['p50']:+7.1f}" for kind in _COLUMNS)
        yield f"{counted} {name:28} {row['call_ns'] / 1000:7.1f}{harm}"


def _state(mps: bool) -> str:
    return "with MPS" if mps else "no MPS"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def _measure(path: Path, arguments: argparse.Namespace) -> None:
    from herald.experiments import provenance, rows
    from herald.experiments.calibration import collect
    from herald.experiments.options import logs
    from herald.experiments.process import Worker

    options = _options(arguments)
    if options.device == "cpu":
        print("on a CPU this measures ops, for a look at them; a rule needs a GPU and MPS", flush=True)
    print(f"collecting ops: a sweep, and those of {', '.join(options.workloads)}", flush=True)
    progress = Progress(options.mps, arguments.limit)
    there = {(row["op"], row["mps"]) for row in rows.of_kind(rows.read(path), KIND)}
    with logs() as folder:
        origin = provenance.of_command(arguments.commit)
        measured = collect.run(
            options,
            start=lambda launch: Worker(launch, folder),
            done=lambda op, mps: (op, mps) in there,
            tell=lambda ops, missing: print(progress.begin(ops, missing), flush=True),
        )
        _keep(measured, path, origin, progress)
    if progress.left > 0:
        print(f"{progress.left} were not measured: the same command goes on there")


def _keep(measured: "Iterable[Row]", path: Path, origin: "Row", progress: Progress) -> None:
    from herald.experiments import provenance, rows

    for row in measured:
        rows.append(path, [{"kind": KIND, **row, "provenance": {"date": provenance.now(), **origin}}])
        for line in progress.lines(row):
            print(line, flush=True)


def _fit(found: "Sequence[Row]", arguments: argparse.Namespace) -> None:
    """Fit, say how well, and write the rule."""
    from herald import rule_file
    from herald.experiments import provenance
    from herald.experiments.calibration import fit, limits, samples, worth

    devices = sorted({str(row["device"]["gpu"]) for row in found})
    if len(devices) != 1:
        raise ConfigError(f"rows of {', '.join(devices) or 'no device'}: a rule is of one; give the rows of one")
    result = fit.fit(samples.of_rows(found), devices[0], limits.of_rows(found))
    for told in worth.lines(result, found):
        print(told)
    rule_file.write(
        arguments.out,
        result.rule,
        {
            "fit": worth.of(result, found),
            "provenance": {
                "date": provenance.now(),
                **provenance.of_command(arguments.commit),
                "rows": worth.origin(found),
            },
        },
    )
    print(f"rule in {arguments.out}")


def _options(arguments: argparse.Namespace) -> "Options":
    from herald.experiments.calibration import collect
    from herald.experiments.cli import resolved_device

    device = resolved_device(arguments.device)
    states = arguments.mps or ("both" if device == "cuda" else "off")
    if device == "cpu" and states != "off":
        raise ConfigError(f"--mps {states} on a CPU: MPS is for GPUs; leave it out")
    if not arguments.seconds_per_op > 0:
        raise ConfigError(f"--seconds-per-op = {arguments.seconds_per_op:g}: give more than 0")
    return collect.Options(
        device=device,
        mps={"on": (True,), "off": (False,), "both": (True, False)}[states],
        workloads=arguments.workload or collect.default_workloads(device),
        seconds_per_op=arguments.seconds_per_op,
        only=arguments.only,
        seed=arguments.seed,
        end_s=time.monotonic() + parse_duration(arguments.limit, setting="--limit") / 1e9,
    )
