"""The demo for real, but short: separate processes on the CPU, its files, its table, and nothing left behind."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from herald.errors import ConfigError
from herald.experiments import demo
from herald.experiments.crew import Pair
from herald.experiments.demo import Case, Options, Outcome, Tally
from herald.experiments.trial import Trial
from tests.leftovers import own_domains


def outcome(latencies_ms: Mapping[str, list[float]], steps: Mapping[str, int]) -> Outcome:
    tallies = {
        name: Tally(latencies_ms[name], steps[name], training_s=10.0, busy_s=3.0, serving_s=10.0) for name in demo.PARTS
    }
    facts = {"inference": {"python": "3", "torch": "2", "cuda": None}, "training": {}}
    return Outcome(Case(Pair("a", "b"), 20), slo_ms=15.0, tallies=tallies, facts=facts)


MADE = outcome(
    {"alone": [10.0] * 100, "shared": [30.0] * 100, "herald": [11.0] * 99 + [20.0]},
    {"alone": 100, "shared": 80, "herald": 60},
)


@pytest.mark.timeout(300)
def test_the_demo_measures_three_settings_and_leaves_nothing(tmp_path: Path) -> None:
    before = own_domains()
    stdout, file = io.StringIO(), tmp_path / "sub" / "demo.json"
    options = Options(device="cpu", seconds=2, seed=1, slo_ms=None)
    demo.run(
        options,
        json_path=file,
        out=tmp_path,
        stdout=Console(file=stdout, width=demo.WIDTH),
        stderr=Console(file=io.StringIO()),
    )
    document = json.loads(file.read_text())
    assert list(document) == ["provenance", "machine", "slo_ms", "rows"]
    assert {"date", "commit", "dirty"} <= document["provenance"].keys()
    assert document["machine"]["torch"]
    assert document["slo_ms"] > 0
    assert [row["setting"] for row in document["rows"]] == ["alone", "shared", "herald"]
    for row in document["rows"]:
        assert list(row) == ["setting", "inference", "training"]
        assert list(row["inference"]) == ["count", "p50_ms", "p95_ms", "p99_ms", "max_ms", "attainment"]
        assert list(row["training"]) == ["steps", "steps_per_s", "relative"]
        assert row["inference"]["p50_ms"] <= row["inference"]["p99_ms"] <= row["inference"]["max_ms"]
        assert row["training"]["steps"] > 0
    assert len({row["inference"]["count"] for row in document["rows"]}) == 1  # the same arrivals
    assert document["rows"][0]["training"]["relative"] == 1.0
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "shared, with Herald" in stdout.getvalue()
    assert max(map(len, stdout.getvalue().splitlines()[:-1])) <= 80  # the last line is a path
    assert own_domains() == before


def test_the_verdict_is_one_sentence_with_the_numbers() -> None:
    said = demo.verdict(MADE)
    assert "3.0x" in said
    assert "1.11x, 99.0% of requests met the SLO, and training ran at 60%" in said
    assert "run it again" not in said


def test_runs_alone_that_something_disturbed_are_not_praised_as_herald_s_work() -> None:
    slow_alone = outcome(
        {"alone": [30.0] * 100, "shared": [40.0] * 100, "herald": [11.0] * 100},
        {"alone": 100, "shared": 80, "herald": 60},
    )
    assert "disturbed by something else on this machine: run it again" in demo.verdict(slow_alone)


def test_the_load_is_the_share_of_the_time_in_which_the_service_works() -> None:
    tally = Tally()
    answer = {"scheduled_s": [0.0, 1.0], "begun_s": [0.0, 1.5], "done_s": [0.5, 2.0]}
    for _ in range(2):
        tally.add(Trial(answers={"inference": answer}, herald={}), seconds=4.0)
    assert tally.load == 0.25
    assert tally.latency_ms == [500.0, 1000.0] * 2


def test_a_trial_of_training_alone_says_nothing_of_the_load() -> None:
    tally = Tally()
    tally.add(Trial(answers={"training": {"done_s": [0.5, 1.0]}}, herald={}), seconds=4.0)
    assert (tally.steps_per_s, tally.load) == (2.0, 0.0)


def test_the_figure_has_a_frontier_with_a_point_per_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "close", lambda _figure: None)
    demo.draw(MADE, tmp_path / "latency.png")
    _, frontier = plt.gcf().axes
    points = {line.get_label(): line.get_xydata().tolist() for line in frontier.get_lines()}
    assert points["each alone: training 1.00"] == [[pytest.approx(10 / 15), 1.0]]
    assert points["shared: training 0.80"] == [[2.0, pytest.approx(0.8)]]
    assert points["Herald: training 0.60"][0][1] == pytest.approx(0.6)
    assert "1 - load = 0.70" in points
    monkeypatch.undo()
    plt.close("all")


def test_the_slo_follows_from_the_runs_alone_unless_it_is_given() -> None:
    tallies = {"alone": Tally([10.0] * 100)}
    assert demo.slo_ms(Options("cpu", 5, 0, None), tallies) == 10.0 * demo.SLO_FACTOR
    assert demo.slo_ms(Options("cpu", 5, 0, 42.0), tallies) == 42.0


def test_no_request_at_all_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="give more seconds"):
        demo.slo_ms(Options("cpu", 1, 0, None), {"alone": Tally()})


@pytest.mark.parametrize("seconds", [0, -1, 4000, float("nan")])
def test_bad_seconds_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="1 to 3600"):
        Options("cpu", seconds, 0, None)


@pytest.mark.parametrize(("seconds", "rounds"), [(1, 1), (6, 1), (36, 6)])
def test_settings_take_turns_in_rounds(seconds: float, rounds: int) -> None:
    assert Options("cpu", seconds, 0, None).num_rounds == rounds
