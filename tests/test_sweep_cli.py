"""`herald experiment frontier`, `poster`, `ablation`, `steps`, `crowd`: what the words become."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from herald.cli import main
from herald.experiments import crowd, steps, sweep_cli, sweep_runner
from herald.experiments.sweeps import CPU_PAIR, FRONTIER, POSTER, TEMPLATES


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sweep_cli.add_parsers(parser.add_subparsers())
    return parser.parse_args(words)


def test_the_frontier_is_six_pairs_three_slos_and_every_static_setting() -> None:
    sweep = sweep_cli.sweep(FRONTIER, parsed("frontier"))
    assert [str(pair) for pair in sweep.pairs] == list(FRONTIER.pairs)
    assert {setting.name for setting in sweep.settings} == set(FRONTIER.settings)
    assert (sweep.load, sweep.slo_factors, sweep.seconds, sweep.repeats) == (0.4, (1.1, 1.5, 2.0), 12.0, 3)
    assert (sweep.mps, sweep.learn_s) == ("both", 12.0)


def test_words_change_it() -> None:
    words = ["--pair", "bert+dlrm", "--load", "0.7", "--slo-factors", "2,1.2", "--learn", "0", "--mps", "on"]
    sweep = sweep_cli.sweep(FRONTIER, parsed("frontier", *words, "--settings", "alone,herald", "--also", "tgs-mps"))
    assert [setting.name for setting in sweep.settings] == ["alone", "herald", "tgs-mps"]
    assert (sweep.load, sweep.slo_factors, sweep.learn_s, sweep.mps) == (0.7, (1.2, 2.0), 0.0, "on")


def test_a_poster_has_a_rate() -> None:
    sweep = sweep_cli.sweep(POSTER, parsed("poster"))
    assert (sweep.rate_hz, sweep.load, sweep.rate_of(0.02)) == (10.0, None, 10.0)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.kind)
def test_on_a_cpu_there_is_a_pair_and_no_mps(template: Any) -> None:
    sweep = sweep_cli.sweep(template, parsed(template.kind, "--device", "cpu"))
    assert [str(pair) for pair in sweep.pairs] == [CPU_PAIR]
    assert not any(setting.mps for setting in sweep.settings)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cpu", "--mps", "on"], "MPS is for GPUs"),
        (["--load", "1"], "--load = 1"),
        (["--slo-factors", "0.9"], "--slo-factors"),
        (["--slo-factors", "x"], "--slo-factors"),
        (["--seconds", "0"], "--seconds = 0"),
        (["--learn", "0s"], "or 0, to learn nothing"),
        (["--settings", "alon"], "did you mean 'alone'"),
        (["--gpu-index", "99"], "--gpu-index 99"),
        (["--pair", "nosuch+cpu-vgg", "--device", "cpu"], "'nosuch' is not a service for --device cpu"),
        (["--pair", "transformer+cpu-vgg", "--device", "cpu"], "'transformer' is not a service for --device cpu"),
        (["--pair", "cpu-transformer+cpu-decode", "--device", "cpu"], "'cpu-decode' is not a trainer"),
        (["--known", "nowhere", "--device", "cpu"], "rows nowhere: no such file"),
        (["--seed=-1"], "--seed = -1"),
    ],
)
def test_bad_words_are_one_clean_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "frontier", *words, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["poster", "--rate", "0"], "--rate = 0"),
        (["steps", "--loads", "0.1"], "--loads = '0.1': give two"),
        (["steps", "--loads", "0.1,0.2,0.3"], "give two shares"),
        (["steps", "--loads", "0.1,1"], "give two shares"),
        (["steps", "--phase", "nan"], "--phase = nan"),
        (["steps", "--slo-factor", "0"], "--slo-factor = 0"),
        (["steps", "--policy", "nosuch"], "--policy = 'nosuch': allowed are herald-strict"),
        (["steps", "--profiles", "nowhere"], "--profiles nowhere"),
        (["crowd", "--policy", "nosuch"], "--policy = 'nosuch'"),
        (["crowd", "--services", "cpu-vgg"], "'cpu-vgg' is not a service"),
        (["crowd", "--trainers", "nosuch"], "'nosuch' is not a trainer"),
        (["crowd", "--floor", "2"], "--floor = 2"),
        (["crowd", "--load", "5"], "--load = 5"),
        (["crowd", "--seconds", "0"], "--seconds = 0"),
        (["crowd", "--slo-factor", "nan"], "--slo-factor = nan"),
        (["crowd", "--profiles", "nowhere"], "--profiles nowhere"),
        (["llm", "--rate", "0"], "--rate = 0"),
        (["timeline", "--pair", "cpu-transformer+nosuch"], "'nosuch' is not a trainer"),
        (["timeline", "--pair", "cpu-transformer+cpu-vgg", "--rate=-1"], "--rate = -1"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", *words, "--device", "cpu", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.iterdir())


def test_rows_are_only_added_to_on_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_runner.SweepRunner, "run", lambda _self: 3)
    (tmp_path / "frontier.jsonl").touch()
    assert main(["experiment", "frontier", "--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    words = ["--device", "cpu", "--resume", "--commit", "abc", "--out", str(tmp_path)]
    assert main(["experiment", "frontier", *words]) == 0
    assert "3 new rows" in capsys.readouterr().out


def test_a_staircase_and_a_crowd_are_what_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    for module in (steps, crowd):
        monkeypatch.setattr(module, "run", lambda case, _log, **_rest: seen.append(case) or 1)
    rest = ["--device", "cpu", "--commit", "abc", "--out", str(tmp_path), "--policy", "laxity"]
    assert main(["experiment", "steps", "--loads", "0.2,0.6", "--phase", "5", *rest]) == 0
    assert main(["experiment", "crowd", "--trainers", "cpu-vgg", "--floor", "0.3", *rest]) == 0
    staircase, everyone = seen
    assert (str(staircase.pair), staircase.low, staircase.high, staircase.phase_s) == (CPU_PAIR, 0.2, 0.6, 5.0)
    assert ([m.name for m in everyone.trainers], everyone.trainers[0].floor) == (["cpu-vgg"], 0.3)
    assert (staircase.policy, everyone.policy) == ("herald-laxity", "laxity")
