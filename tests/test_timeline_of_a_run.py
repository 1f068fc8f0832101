"""A colocated second as a timeline: what is watched and recorded, and the trace and the picture made of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import herald
from herald import layout
from herald.errors import ConfigError, TableError
from herald.experiments import chrome_trace, timeline, timeline_picture, training_ops
from herald.experiments.crew import Pair
from herald.experiments.gate_watch import Eye, State, Watched, watch
from herald.experiments.op_trace import Event
from herald.experiments.timeline import (
    Op,
    Options,
    Request,
    Stretch,
    Timeline,
    assembled,
    lanes,
    queue_lengths,
    service_plan,
    trainer_plan,
)
from herald.experiments.training_ops import Classes, kernel_spans, recorded_spans, shapes_in
from herald.hooks.recorder import BACKWARD, EVENT, FUNCTION, Recording, SignatureInfo
from herald.profiles import OpProfile
from herald.table import Table

MS = 1_000_000
OPTIONS = Options(
    pair=Pair("service", "trainer"),
    device="cuda",
    mps=True,
    policy="strict",
    seconds=1.0,
    settle_s=5.0,
    rate_hz=10.0,
    slo_ms=None,
    seed=0,
)
OPEN = State(0, layout.LEAD_ALWAYS, layout.NO_QUEUE_LIMIT, 0, sm_wanted=0, sm_granted=0, rate_ppm=0)
CLOSED = OPEN._replace(gate=1)
ON_A_SHARE = OPEN._replace(sm_wanted=99, sm_granted=99)
BEGIN_NS = 50_000 * MS


def seen(*changes: tuple[int, State]) -> Watched:
    """Changes at times in ms from the begin of the stretch."""
    return Watched(tuple((BEGIN_NS + at_ms * MS, state) for at_ms, state in changes), 9, 100_000, 150_000)


def at(begin_ms: float, end_ms: float, kind: str, *, before_gated: bool = False) -> list[Any]:
    """A span as a worker answers with it."""
    return [f"aten::{kind}", kind, 7, BEGIN_NS + round(begin_ms * MS), BEGIN_NS + round(end_ms * MS), before_gated]


OPS = [at(-9, -1, "heavy"), at(-1, 5, "heavy"), at(20, 60, "heavy"), at(60, 61, "light"), at(999, 1003, "heavy")]


def made(ops: list[list[Any]] | None = None) -> Timeline:
    return assembled(
        OPTIONS,
        50.0,
        requests=[
            Request(-400 * MS, -300 * MS, -200 * MS),
            Request(-20 * MS, -20 * MS, 20 * MS),
            Request(100 * MS, 100 * MS, 140 * MS),
            Request(110 * MS, 140 * MS, 200 * MS),
            Request(1100 * MS, 1100 * MS, 1140 * MS),
        ],
        watched=seen((0, CLOSED), (20, OPEN), (100, CLOSED), (200, OPEN), (600, ON_A_SHARE)),
        trained={
            "steps_ns": [BEGIN_NS + at_ms * MS for at_ms in (-60, -10, 90, 300, 1010)],
            "ops": OPS if ops is None else ops,
        },
        begin_ns=BEGIN_NS,
        sm_total=132,
    )


# Watching -------------------------------------------------------------------------------------------------------------


class Clock:
    """Advances by 100 us a pause."""

    def __init__(self) -> None:
        self.now_ns = 0

    def pause(self, _seconds: float) -> None:
        self.now_ns += 100_000


def test_only_changes_are_kept_with_the_time_at_which_they_were_seen() -> None:
    clock = Clock()
    states = iter([OPEN, OPEN, CLOSED, CLOSED, OPEN])
    watched = watch(lambda: next(states), 400_000, clock_ns=lambda: clock.now_ns, pause=clock.pause)
    assert watched.changes == ((0, OPEN), (200_000, CLOSED), (400_000, OPEN))
    assert (watched.looks, watched.median_gap_ns, watched.longest_gap_ns) == (5, 100_000, 100_000)


def test_a_look_sees_the_gate_and_the_plans_of_both_jobs(domain: str) -> None:
    table = Table.open(domain)
    trainer = table.claim(name="trainer", priority="low", device="cpu")
    with herald.attach(priority="high", slo="50ms", name="service", domain=domain, device="cpu") as service:
        eye = Eye(domain)
        assert eye() == OPEN
        request = service.begin()
        assert eye().gate != 0
        request.end()
        assert eye().gate == 0
        table.publish_trainer_plan(trainer, table.job(trainer).generation, sm_count=99, rate_ppm=500_000)
        view = service.stats()
        table.publish_plan(view.row, view.generation, 7 * MS, 3, slice_ns=5 * MS)
        look = eye()
    assert (look.sm_wanted, look.rate_ppm) == (99, 500_000)
    assert (look.lead_ns, look.queue_limit, look.slice_ns) == (7 * MS, 3, 5 * MS)


def test_a_domain_without_a_pair_cannot_be_watched(domain: str) -> None:
    Table.open(domain)
    with pytest.raises(TableError, match="0 jobs of priority 'high'"):
        Eye(domain)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (OPEN, "closed in requests"),
        (OPEN._replace(lead_ns=layout.LEAD_NEVER), "open"),
        (OPEN._replace(lead_ns=layout.LEAD_NEVER, queue_limit=2), "open, at most 2 open"),
        (OPEN._replace(lead_ns=5 * MS, queue_limit=1), "by slack, at most 1 open"),
        (OPEN._replace(slice_ns=5 * MS), "turns of 5 ms"),
    ],
)
def test_a_plan_of_a_service_is_told_in_words(state: State, said: str) -> None:
    assert service_plan(state) == said


def test_a_plan_of_a_trainer_is_told_in_words() -> None:
    assert trainer_plan(OPEN) == "all SMs"
    assert trainer_plan(ON_A_SHARE._replace(rate_ppm=250_000)) == "99 SMs, 25 % of the time"


# Recording ------------------------------------------------------------------------------------------------------------


def recording(*rows: tuple[int, int, int, int, int]) -> Recording:
    """Of (signature, parent, scope, begin, end)."""
    events = np.zeros(len(rows), EVENT)
    for event, (signature, parent, scope, begin, end) in zip(events, rows, strict=True):
        event["signature"], event["parent"], event["scope"] = signature, parent, scope
        event["begin_ns"], event["end_ns"] = begin, end
    names = ("aten::outer", "aten::inner", "aten::view")
    return Recording(events, signatures=tuple(SignatureInfo(i, name, name, 1) for i, name in enumerate(names)))


def test_on_a_cpu_ops_that_have_a_class_are_shown_in_pieces_of_their_own_time() -> None:
    tape = recording(
        (0, -1, FUNCTION, 0, 100),
        (2, 0, FUNCTION, 1, 60),
        (1, 1, FUNCTION, 50, 59),
        (0, 0, FUNCTION, 70, 80),
        (-1, -1, FUNCTION, 300, 310),
        (1, -1, BACKWARD, 400, 410),
    )
    assert recorded_spans(tape, {0: "light", 1: "heavy", 2: "none"}) == [
        ("aten::outer", "light", 0, 0, 50, True),  # a heavy op begins then, which may have waited
        ("aten::outer", "light", 0, 59, 70, False),
        ("aten::outer", "light", 0, 80, 100, False),
        ("aten::inner", "heavy", 0, 50, 59, False),
        ("aten::outer", "light", 0, 70, 80, False),
    ]


def test_where_an_op_inside_another_may_have_waited_nothing_is_shown_from_the_close_on() -> None:
    spans = [
        at(90, 201, "light", before_gated=True),
        at(90, 201, "heavy"),
        at(30, 40, "light", before_gated=True),
        at(150, 190, "light", before_gated=True),
    ]
    shown = [(op.begin_ns // MS, op.end_ns // MS, op.kind) for op in made(ops=spans).ops]
    assert shown == [(90, 100, "light"), (90, 201, "heavy"), (30, 40, "light")]


class Kernel:
    """What kineto says of one."""

    def __init__(self, correlation: int, begin_ns: int = 1000) -> None:
        self.correlation, self.begin_ns = correlation, begin_ns

    def linked_correlation_id(self) -> int:
        return self.correlation

    def name(self) -> str:
        return "gemm"

    def device_resource_id(self) -> int:
        return 7

    def start_ns(self) -> int:
        return self.begin_ns

    def duration_ns(self) -> int:
        return 50


class HostEvent:
    """What kineto says of an op, as far as it is asked."""

    def __init__(self, *shapes: list[int]) -> None:
        self._shapes = shapes

    def shapes(self) -> list[list[int]]:
        return list(self._shapes)


KNOWN = (
    OpProfile("aten::mm(Float[2, 3], Float[3, 4])", 1, 900, 10, kind="heavy"),
    OpProfile("aten::mm(Float[1, 1], Float[1, 1])", 2, 100, 10, kind="light"),
    OpProfile("aten::add(Float[8])", 3, 100, 10, kind="light"),
)


def test_on_a_gpu_a_kernel_has_the_class_of_the_op_that_launched_it() -> None:
    events = [
        Event("aten::mm", 1, 0, 10, 0, 1),
        Event("aten::mm", 1, 20, 30, 0, 2),
        Event("aten::new", 1, 40, 50, 0, 3),
    ]
    on_host = [HostEvent([1, 1], [1, 1], []), HostEvent([9, 9], [9, 9]), HostEvent()]
    kernels = [Kernel(1), Kernel(2), Kernel(3), Kernel(0)]
    spans = kernel_spans(on_host, events, kernels, Classes(KNOWN, all_heavy=False), offset_ns=-400)
    assert spans == [
        ("aten::mm", "light", 7, 600, 650, False),
        ("aten::mm", "heavy", 7, 600, 650, False),  # of other shapes: as most of the time of that name
        ("aten::new", "unknown", 7, 600, 650, False),
        ("gemm", "unknown", 7, 600, 650, False),  # launched outside of any op
    ]


def test_without_mps_light_counts_as_heavy() -> None:
    assert Classes(KNOWN, all_heavy=True).of("aten::add", ((8,),)) == "heavy"


def test_shapes_are_read_from_a_signature_as_torch_gives_them() -> None:
    assert shapes_in("aten::addmm(Float[128], Float[32, 784], Float[])") == ((128,), (32, 784))


class FakeSession:
    """Trains at a step a call of the clock; what it is told is kept."""

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cpu")
        self.told: list[tuple[float, float]] = []

    def run(self, start_s: float, seconds: float, arrivals: object) -> dict[str, Any]:
        self.told.append((start_s, seconds))
        return {"done_s": [0.25, 0.5]}


def test_a_trainer_settles_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession()
    monkeypatch.setattr(training_ops.time, "monotonic", lambda: 104.7)
    answer = training_ops.measure(session, start_s=100.0, settle_s=5.0, seconds=1.0)
    assert session.told == [(100.0, pytest.approx(4.6)), (104.7, pytest.approx(1.3))]
    assert answer == {"steps_ns": [104_950_000_000, 105_200_000_000], "ops": []}


# Putting together -----------------------------------------------------------------------------------------------------


def test_everything_is_cut_to_the_stretch() -> None:
    found = made()
    assert [r.arrived_ns // MS for r in found.requests] == [-20, 100, 110]
    assert found.closed == (Stretch(0, 20 * MS, "closed"), Stretch(100 * MS, 200 * MS, "closed"))
    assert [(s.begin_ns // MS, s.end_ns // MS) for s in found.steps] == [(0, 90), (90, 300), (300, 1000)]
    assert [(op.begin_ns // MS, op.end_ns // MS, op.kind) for op in found.ops] == [
        (0, 5, "heavy"),
        (20, 60, "heavy"),
        (60, 61, "light"),
        (999, 1000, "heavy"),
    ]
    assert found.sm_share == ((0, 1.0), (600 * MS, 0.75))
    assert [(p.begin_ns // MS, p.name) for p in found.trainer_plans] == [(0, "all SMs"), (600, "99 SMs")]
    assert [p.name for p in found.plans] == ["closed in requests"]
    assert found.num_met == 2


def test_the_summary_says_what_the_slo_is_and_how_finely_the_gate_was_sampled() -> None:
    found = replace(made(), slo_ms=188.25, gap_ns=(150_000, 17_892_000))
    said = timeline.summary(found)
    assert "service beside trainer, policy strict, MPS\n" in said
    assert "3 of 3 requests met the SLO of 188.2 ms (1.5 x p99 alone, measured before)\n" in said
    assert "sampled: every 150 us (median), longest gap 17.9 ms;\n" in said
    chosen = replace(found, options=replace(OPTIONS, slo_ms=188.25))
    assert "met the SLO of 188.2 ms (--slo)\n" in timeline.summary(chosen)
    assert max(len(line) for line in said.splitlines()) <= 80


def test_the_queue_is_what_has_arrived_and_is_not_done() -> None:
    lengths = queue_lengths([Request(0, 0, 10), Request(5, 10, 20), Request(20, 20, 30)])
    assert lengths == [(0, 1), (5, 2), (10, 1), (20, 0), (20, 1), (30, 0)]


def test_requests_that_overlap_lie_in_lanes_of_their_own() -> None:
    assert lanes([Request(0, 0, 10), Request(5, 10, 20), Request(12, 20, 30), Request(15, 30, 40)]) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"seconds": 60.0}, "0.1 to 10"), ({"settle_s": 0.0}, "1 to 600"), ({"policy": "stict"}, "did you mean")],
)
def test_what_cannot_be_shown_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(OPTIONS, **changes)


@pytest.mark.timeout(240)
def test_a_pair_on_a_cpu_for_real(tmp_path: Path) -> None:
    pair = Pair("cpu-decode", "cpu-gpt")
    options = replace(OPTIONS, pair=pair, device="cpu", mps=False, settle_s=1.0, rate_hz=50.0, slo_ms=1000.0)
    found = timeline.run(options, log_dir=tmp_path)
    assert found.num_met == len(found.requests) > 0
    assert found.closed and found.steps and {op.kind for op in found.ops} <= {"light", "heavy", "unknown"}
    assert [plan.name for plan in found.plans] == ["closed in requests"]
    assert found.sm_total == 0 and found.sm_share == ((0, 1.0),)


# The trace ------------------------------------------------------------------------------------------------------------


def named(events: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(process, thread) of every thread that has a name."""
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    return ((processes[e["pid"]], e["args"]["name"]) for e in events if e["name"] == "thread_name")


def test_the_trace_has_named_lanes_and_counters(tmp_path: Path) -> None:
    file = chrome_trace.write(made(), tmp_path / "sub" / "t.json", {"commit": "c"})
    document = json.loads(file.read_text())
    assert document["otherData"] == {"commit": "c"}
    events = document["traceEvents"]
    assert list(named(events)) == [
        ("requests: service", "lane 1"),
        ("requests: service", "lane 2"),
        ("gate of heavy ops", "closed (sampled every 100 us, longest gap 150 us)"),
        ("training: trainer", "steps"),
        ("training: trainer", "classes"),
        ("training: trainer", "ops, stream 7"),
        ("plans: policy strict", "service"),
        ("plans: policy strict", "trainer"),
    ]
    counters = [(e["name"], e["ts"], e["args"]["value"]) for e in events if e["ph"] == "C"]
    assert ("queue length", 110_000.0, 2) in counters
    assert ("SMs that training runs on", 600_000.0, 99) in counters


def test_every_event_lies_in_the_stretch_and_threads_have_names() -> None:
    events = list(chrome_trace.events(made()))
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    for event in events:
        if event["ph"] == "X":
            assert (event["pid"], event["tid"]) in threads
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["ts"] + event["dur"] <= 1e6
    missed = [e for e in events if e["name"] == "request 3 missed its SLO"]
    assert [(e["ts"], e["dur"], e["args"]["met"]) for e in missed] == [(110_000.0, 90_000.0, False)]


def test_ops_of_a_class_that_follow_each_other_are_one_stretch() -> None:
    ops = [
        Op(0, 10, "a", "heavy", 1),
        Op(15, 20, "b", "heavy", 1),
        Op(16, 18, "c", "light", 2),
        Op(19, 30, "d", "light", 2),
    ]
    assert chrome_trace.classes(ops) == [Stretch(0, 20, "heavy"), Stretch(20, 30, "light")]


# The picture ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sm_total", [0, 132])
def test_the_picture_is_drawn_with_and_without_sm_shares(tmp_path: Path, sm_total: int) -> None:
    pytest.importorskip("matplotlib")
    file = timeline_picture.draw(replace(made(), sm_total=sm_total), tmp_path / "t.png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_second_without_requests_and_ops_is_drawn_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    nothing = replace(made(), requests=(), ops=(), closed=(), steps=())
    assert timeline_picture.draw(nothing, tmp_path / "t.png").exists()


def test_columns_are_filled_from_below_by_what_each_class_takes() -> None:
    spans_ms = ((0, 25, "heavy"), (25, 30, "light"), (60, 100, "heavy"))
    ops = [Op(begin * MS, end * MS, "a", kind, 1) for begin, end, kind in spans_ms]
    image = timeline_picture.image_of(ops, length_ns=100 * MS, columns=2, rows=10)
    colours = {
        name: tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for name, code in timeline_picture.COLOURS.items()
    }
    left = [tuple(int(c) for c in pixel) for pixel in image[:, 0]]
    assert left == [(247, 247, 247)] * 4 + [colours["light"]] + [colours["heavy"]] * 5
    assert [tuple(int(c) for c in pixel) for pixel in image[:, 1]].count(colours["heavy"]) == 8
