"""The calibration: which ops it takes, that alone and beside take turns, and that nothing that fails stops it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from herald.cli import main
from herald.experiments.calibration import capture, collect, operations, probes, sweep
from herald.experiments.calibration.command import Progress
from herald.experiments.calibration.replay import Loop, PlainBatch, Repeated, ReplayError
from herald.experiments.process import Launch, WorkerError

CPU = torch.device("cpu")
LATENCY = {"n": 10, "mean_ns": 100, "p10_ns": 100, "p50_ns": 100, "p90_ns": 100, "p99_ns": 100}


class FakeProcess:
    """Answers as a worker of the calibration; requests take twice as long while something loops."""

    looping = False

    def __init__(self, launch: Launch, log: list[str], fails: Callable[[str, dict[str, Any]], bool]) -> None:
        self.launch = launch
        self.log = log
        self.fails = fails
        self.answers: list[Any] = []
        self.closed = False

    def send(self, do: str, **fields: object) -> None:
        self.log.append(f"{self.launch.name} {do} {fields.get('kind', fields.get('label', ''))}".strip())
        self.answers.append(WorkerError("it broke\nbadly") if self.fails(do, fields) else self._answer(do))

    def _answer(self, do: str) -> dict[str, Any]:
        FakeProcess.looping = do == "start" or (FakeProcess.looping and do != "stop")
        latency = {key: value * (2 if self.looping and key != "n" else 1) for key, value in LATENCY.items()}
        return {
            "load": {"gpu": "a GPU", "num_sms": 132},
            "known": {"labels": ["sweep/a", "sweep/b"]},
            "catch": {"labels": ["vgg/c"]},
            "facts": {"signatures": ["aten::a()"], "numel": 5, "flops": 0, "kernels": []},
            "prepare": {"call_ns": 1000, "calls_per_batch": 4},
            "stop": {"call_ns": 1500},
            "probe": latency,
        }.get(do, {})

    def receive(self, timeout_s: float) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, WorkerError):
            raise answer
        return dict(answer)

    def call(self, do: str, *, timeout_s: float, **fields: object) -> dict[str, Any]:
        self.send(do, **fields)
        return self.receive(timeout_s)

    def close(self) -> None:
        self.closed = True


class Stage:
    """Starts fakes and remembers them."""

    def __init__(self, fails: Callable[[str, dict[str, Any]], bool] = lambda do, fields: False) -> None:
        self.log: list[str] = []
        self.processes: list[FakeProcess] = []
        self.fails = fails

    def start(self, launch: Launch) -> FakeProcess:
        self.processes.append(FakeProcess(launch, self.log, self.fails))
        return self.processes[-1]

    def rows(self, **options: Any) -> list[dict[str, Any]]:
        done = options.pop("done", lambda op, mps: False)
        given = collect.Options(device="cpu", mps=(False,), workloads=("vgg",), **options)
        return list(collect.run(given, self.start, done))


def test_every_op_gets_a_row_with_its_facts_and_its_harm() -> None:
    stage = Stage()
    rows = stage.rows()
    assert {row["op"] for row in rows} == {"sweep/a", "sweep/b", "vgg/c"}
    for row in rows:
        assert (row["numel"], row["call_ns"], row["mps"], row["device"]["num_sms"]) == (5, 1000, False, 132)
        assert {kind: found["p50"] for kind, found in row["probes"].items()} == dict.fromkeys(collect.PROBES, 100.0)
    assert all(process.closed for process in stage.processes)


def test_requests_are_measured_alone_before_and_after_each_op() -> None:
    stage = Stage()
    stage.rows(only="sweep/a")
    begin = stage.log.index("aggressor prepare sweep/a")
    assert stage.log[begin + 1 : begin + 6] == [
        "probe probe compute",
        "aggressor start",
        "probe probe compute",
        "aggressor stop",
        "probe probe compute",
    ]


def test_an_op_that_cannot_be_repeated_is_skipped_with_the_reason() -> None:
    stage = Stage(lambda do, fields: do == "prepare" and fields["label"] == "sweep/b")
    rows = {row["op"]: row for row in stage.rows()}
    assert rows["sweep/b"]["skipped"] == "it broke"
    assert "probes" in rows["sweep/a"]
    assert "probes" in rows["vgg/c"]
    assert len(stage.processes) == 3  # none was started again


def test_a_process_that_breaks_is_started_again_and_the_next_op_measured() -> None:
    stage = Stage(lambda do, fields: do == "stop" and len(stage.processes) == 3)
    rows = stage.rows()
    assert [("skipped" in row) for row in rows] == [True, False, False]
    assert len(stage.processes) == 5
    assert all(process.closed for process in stage.processes)


def test_a_device_that_fails_every_op_ends_the_calibration() -> None:
    stage = Stage(lambda do, fields: do == "stop")
    assert all("skipped" in row for row in stage.rows())


def test_missing_facts_do_not_lose_the_measurement() -> None:
    rows = Stage(lambda do, fields: do == "facts").rows()
    assert all(row["facts_missing"] == "it broke" and "probes" in row for row in rows)


def test_what_is_there_is_not_measured_again() -> None:
    stage = Stage()
    rows = stage.rows(done=lambda op, mps: op != "sweep/b")
    assert [row["op"] for row in rows] == ["sweep/b"]
    assert "facts facts vgg/c" not in stage.log


def test_how_much_there_is_to_measure_is_told_once_and_first() -> None:
    told: list[tuple[int, int]] = []
    given = collect.Options(device="cpu", mps=(False,), workloads=("vgg",))
    measured = collect.run(
        given, Stage().start, lambda op, mps: (op, mps) == ("sweep/a", False), lambda *numbers: told.append(numbers)
    )
    next(measured)
    assert told == [(3, 2)]
    assert len(list(measured)) == 1
    assert told == [(3, 2)]


def test_no_op_begins_after_the_limit() -> None:
    assert Stage().rows(end_s=0.0) == []


# What is repeated -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", list(sweep.operations(CPU)))
def test_each_op_of_the_sweep_runs_and_has_costs(label: str) -> None:
    operation = sweep.operations(CPU)[label]()
    with torch.inference_mode():
        cost = operations.cost(operation.call)
    assert cost.signatures
    assert cost.bytes_in > 0
    assert cost.bytes_out > 0


def test_flops_and_bytes_come_from_the_parts_of_an_op() -> None:
    layer = torch.nn.Linear(8, 4)
    with torch.inference_mode():
        cost = operations.cost(lambda: layer(torch.ones(2, 8)))
    assert cost.flops == 2 * 2 * 8 * 4
    assert "aten::addmm(Float[4], Float[2, 8], Float[8, 4])" in cost.signatures


def test_an_op_in_place_writes_what_it_reads() -> None:
    values = torch.ones(16)
    cost = operations.cost(lambda: values.add_(1))
    assert (cost.bytes_in, cost.bytes_out) == (64, 64)


def test_the_ops_of_a_training_step_are_caught_with_those_of_its_backward_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(inplace=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()

    caught = capture.ops_of("tiny", step, CPU, most=50)
    assert "tiny/aten::relu_(Float[2, 4])" in caught
    assert "tiny/aten::threshold_backward(Float[2, 4], Float[2, 4])" in caught
    for operation in caught.values():
        Repeated(operation.call, CPU).warm_up()


def test_named_ops_are_caught_again() -> None:
    def step() -> torch.Tensor:
        return (torch.ones(4) + 1).relu()

    label = "tiny/aten::relu(Float[4])"
    assert list(capture.ops_of("tiny", step, CPU, most=0, labels=[label, "tiny/gone"])) == [label]


def test_the_biggest_ops_are_taken_and_a_spread_of_the_rest() -> None:
    times_ns = {f"op{place:02}": 100 - place for place in range(20)}
    assert capture.choose(times_ns, 6) == ["op00", "op01", "op02", "op03", "op08", "op14"]
    assert capture.choose(times_ns, 100) == list(times_ns)
    assert capture.choose({}, 6) == []


def test_a_batch_is_as_long_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Repeated(lambda: None, CPU)
    monkeypatch.setattr(work, "batch_ns", lambda: 100_000 * work.batch.num_calls)
    work.fit()
    assert work.batch.num_calls == 15


def test_a_loop_runs_until_it_is_stopped() -> None:
    calls = []
    loop = Loop(Repeated(lambda: calls.append(1), CPU))
    loop.start()
    assert calls
    assert loop.stop() > 0


def test_a_loop_that_fails_says_so() -> None:
    work = Repeated(lambda: 1 / 0, CPU)
    with pytest.raises(ReplayError, match="division by zero"):
        Loop(work).start()


@pytest.mark.parametrize("kind", collect.PROBES)
def test_a_probe_measures_its_requests(kind: str) -> None:
    found = probes.Probe(kind, CPU).measure(0)
    assert found["n"] == probes.LEAST_REQUESTS
    assert 0 < found["p10_ns"] <= found["p50_ns"] <= found["p99_ns"]


def test_a_plain_batch_repeats_its_call() -> None:
    calls = []
    PlainBatch(lambda: calls.append(1), 3).enqueue()
    assert len(calls) == 3


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_rows_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = ["calibrate", "--device", "cpu", "--out", str(tmp_path / "c.json"), "--seconds-per-op", "0.001"]
    assert main([*words, "--only", "relu-256", "--workload", "cpu-rnnlm"]) == 0
    assert main([*words, "--only", "-256", "--workload", "cpu-rnnlm"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [row["op"] for row in rows] == ["sweep/relu-256"]
    assert rows[0]["provenance"]["machine"]["num_cpus"]


def test_progress_says_how_far_it_is_in_80_columns() -> None:
    progress = Progress((True, False), "8min")
    begin = progress.begin(ops=3, missing=5)
    assert "3 ops, with MPS and no MPS: 5 to measure, 1 are there already\n" in begin
    assert "at most 8min in all" in begin
    harms = {kind: {"p50": 1234.56} for kind in collect.PROBES}
    op = "vgg16/aten::convolution_backward(Float[32, 512, 14, 14])"
    rows = [
        {"op": op, "mps": True, "call_ns": 123_456_789, "probes": harms},
        {"op": "sweep/a", "mps": True, "skipped": "it broke " * 20},
        {"op": "sweep/a", "mps": False, "call_ns": 1500, "probes": {kind: {"p50": -1.25} for kind in collect.PROBES}},
    ]
    heading, first, skipped, again, last = (line for row in rows for line in progress.lines(row))
    assert heading.split() == ["with", "MPS", "op", "us", "compute", "memory", "small", "small-n"]
    assert first.split()[:4] == ["1", "of", "5", "vgg16/convolution_backward(\N{HORIZONTAL ELLIPSIS}"]
    assert skipped.startswith("  2 of 5   sweep/a ") and "skipped: it broke" in skipped
    assert again.startswith("no MPS ")
    assert last.split() == ["3", "of", "5", "sweep/a", "1.5", "-1.2", "-1.2", "-1.2", "-1.2"]
    assert progress.left == 2
    assert all(len(line) <= 80 for line in (*begin.splitlines(), heading, first, skipped, again, last))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu", "--mps", "on"], "MPS is for GPUs"),
        (["--out", "/proc/x/c.json"], "--out /proc/x/c.json: cannot be written ("),
        (["--device", "cpu", "--seconds-per-op", "0"], "more than 0"),
        (["--device", "cpu", "--limit", "soon"], "--limit"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *words]) == 2
    assert message in capsys.readouterr().err
