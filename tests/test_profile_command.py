"""`herald profile`: in real processes, on the CPU; and what it prints."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from herald import cli, profile_process
from herald.fake_profiles import vgg16
from herald.hooks import native
from herald.hooks.profiling import child
from herald.profile_process import Order
from herald.profile_summary import by_name, render
from herald.profiles import OpKind, Profile

PROGRAM = """
import sys, torch

def make_step():
    assert __name__ == "__main__" or sys.argv == ["train.py"], sys.argv
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def step():
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    return step, model

def idle():
    return lambda: None

def endless():
    def step():
        while True:
            pass
    return step

def stuck():
    import ctypes
    pause = ctypes.PyDLL(None).pause
    def step():
        print("stuck", flush=True)
        while True:
            pause()
    def blocked():
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        step()
    return blocked

def leaving():
    return lambda: sys.exit(3)

def broken():
    raise ValueError("no data")

def nothing():
    return 7

if __name__ == "__main__":
    step, _ = make_step()
    for _ in range(int(sys.argv[1])):
        step()
    print("went to the end", flush=True)
    sys.exit(int(sys.argv[2]))
"""
FAST = ("--iterations", "2", "--warmup", "1", "--device", "cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture
def profile(here: Path, capfd: pytest.CaptureFixture[str]) -> "Callable[..., Done]":
    """`herald profile -o p.json WORDS`, whose other process is a real one."""

    native.hook()  # built by now, so that nothing is said of it

    def run(*words: str) -> Done:
        code = cli.main(["profile", "-o", "p.json", *FAST, *words])
        said = capfd.readouterr()
        return Done(code, said.out, said.err)

    return run


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


def test_a_step_function_of_a_file(profile: Run, here: Path) -> None:
    done = profile("train.py:make_step")
    assert done.code == 0, done.err
    # Of a busy machine it says so, rightly: tests/test_passes.py has what it says when.
    assert [line for line in done.err.splitlines() if not line.startswith("an iteration took")] == []
    assert "written to p.json" in done.out
    found = Profile.load("p.json")
    assert found.workload == "train"
    assert found.iteration is not None
    assert {"forward", "backward", "optimizer"} <= {instance.phase for instance in found.iteration.instances}
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == {"train.py", "p.json"}


def test_a_program_goes_on_to_its_end(profile: Run) -> None:
    done = profile("--workload", "mine", "--", sys.executable, "train.py", "40", "7")
    assert done.code == 7, done.err
    assert "went to the end" in done.out
    found = Profile.load("p.json")
    assert found.workload == "mine"
    assert found.iteration is not None
    phases = [instance.phase for instance in found.iteration.instances]
    assert phases.index("forward") < phases.index("backward") < phases.index("optimizer")
    assert {op.calls for op in found.ops if op.name == "aten::addmm"} == {1.0}


def test_a_program_can_be_stopped(profile: Run) -> None:
    done = profile("--stop", "--", sys.executable, "train.py", "1000000", "7")
    assert done.code == 0, done.err
    assert "went to the end" not in done.out
    assert Profile.load("p.json").ops


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.py:endless", "--limit", "300ms"), "limit = 300 ms is over before"),
        (("train.py:leaving",), "train.py:leaving ended the process (exit code 3): a step function has to return"),
        (("--", sys.executable, "train.py", "3", "0"), "ended (exit code 0) with 2 of 10 iterations seen"),
        (
            ("--", sys.executable, "train.py", "0", "5"),
            "failed (exit code 5; see what it said above) with no iteration",
        ),
        (("--limit", "1s", "--warmup", "9999", "--", sys.executable, "train.py", "99999999", "0"), "--limit = 1 s is"),
        (("--", "./python", "train.py"), "./python ended (exit code 4) before it began: is Herald installed"),
    ],
)
def test_without_a_profile_there_is_one_error(profile: Run, here: Path, words: tuple[str, ...], said: str) -> None:
    (here / "python").write_text("#!/bin/sh\nexit 4\n")
    (here / "python").chmod(0o755)
    (here / "p.json").write_text('{"format": "herald-profile", an old one must not pass for the new one')
    done = profile(*words)
    assert done.code == 2
    errors = [line for line in done.err.splitlines() if line.startswith("herald: error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (here / "p.json").exists()


def test_a_program_that_raised_is_not_told_to_run_longer(profile: Run, here: Path) -> None:
    (here / "err.py").write_text("raise ValueError('no data')\n")
    done = profile("--", sys.executable, "err.py")
    assert done.code == 2
    assert "ValueError: no data" in done.err
    assert done.err.splitlines()[-1].endswith(
        "the program failed (exit code 1; see what it said above) with no iteration seen"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.py:make_step",), "there is no file 'absent.py'"),
        (("train.py:make_step", "--limit", "soon"), "--limit = 'soon' is not a duration"),
        (("train.py:make_step", "-o", "/nowhere/p.json"), "--output = '/nowhere/p.json': /nowhere is no folder"),
        (("--", "ls"), "'ls' is no Python program: give FILE.py:FUNCTION"),
        (("--", "/absent/python", "train.py"), "cannot start '/absent/python': No such file"),
        ((), "nothing to profile: give FILE.py:FUNCTION"),
    ],
)
def test_what_cannot_be_profiled_is_told_before_anything_runs(profile: Run, words: tuple[str, ...], said: str) -> None:
    done = profile(*words)
    assert done.code == 2
    assert said in done.err


def test_a_step_that_is_stuck_in_c_is_killed(profile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_process, "_GRACE_NS", 100_000_000)
    done = profile("--limit", "100ms", "train.py:stuck")
    assert "limit = 100 ms is over, and train.py:stuck is stuck in a call into C or on the device" in done.err
    assert (done.code, done.out) == (2, "stuck\n")


def test_the_process_ends_with_its_parent(here: Path, start: "Callable[..., subprocess.Popen[str]]") -> None:
    (here / "train.py").write_text("import os\ndef make():\n    print(os.getpid(), flush=True)\n    while True: pass\n")
    parent = start(sys.executable, "-m", "herald", "profile", "-o", "p.json", "train.py:make")
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGTERM)
    assert parent.wait() == 128 + signal.SIGTERM
    assert not Path(f"/proc/{pid}").exists()


def test_nobody_gates_what_is_measured_nor_asks_for_the_profile_that_is_made(profile: Run, here: Path) -> None:
    (here / "train.py").write_text(
        "import json, os, torch, herald\n"
        "def make():\n"
        "    job = herald.attach(priority='low', profile='p.json')\n"
        "    json.dump(type(job).__name__, open('job.json', 'w'))\n"
        "    return lambda: torch.ones(2).add_(1)\n"
    )
    assert profile("train.py:make").code == 0
    assert json.loads((here / "job.json").read_text()) == "DisabledJob"


# ---- inside the other process


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other process imports is forgotten with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("train", "bad"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"function": "train.py:idle"}, "no op was seen on"),
        ({"function": "train.py:broken"}, "train.py:broken raised ValueError: no data"),
        ({"function": "train.py:nothing"}, "train.py:nothing returned 7: it must return a step function"),
        ({"function": "train.py:absent"}, "train.py has no function 'absent'"),
        ({"function": "text.txt:make"}, "'text.txt' is not a Python file"),
        ({"function": "bad.py:make"}, "bad.py raised ZeroDivisionError when it was loaded: division by zero"),
        ({"iterations": 0}, "iterations = 0: give a whole number"),
        ({"device": "tpu"}, "device = 'tpu' is not a device"),
        ({"output": "/nowhere/p.json"}, "profile = '/nowhere/p.json' cannot be written"),
    ],
)
def test_it_tells_its_parent_and_people_what_failed(
    here: Path, inside: None, capsys: pytest.CaptureFixture[str], order: dict[str, Any], said: str
) -> None:
    (here / "bad.py").write_text("1 / 0")
    (here / "text.txt").touch()
    told, pipe = os.pipe()
    asked = Order("p.json", "train.py:make_step", 1, 1, 60_000_000_000, "cpu", "", False, pipe)
    with pytest.raises(SystemExit) as left:
        child.main(replace(asked, **order), ())
    os.close(pipe)
    with os.fdopen(told) as lines:
        assert lines.read().split("\n")[-2] == "failed"
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_what_the_workload_raised_is_shown_with_its_place(
    here: Path, inside: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        child.main(Order("p.json", "train.py:broken", 1, 1, 60_000_000_000, "cpu", "", False), ())
    assert 'raise ValueError("no data")' in capsys.readouterr().err


@pytest.mark.parametrize("output", ["train.py", ".", "/dev/null"])
def test_what_is_no_profile_is_not_replaced(here: Path, capsys: pytest.CaptureFixture[str], output: str) -> None:
    assert cli.main(["profile", "-o", output, "train.py:make_step"]) == 2
    assert "is there and is no profile" in capsys.readouterr().err
    assert Path(output).exists()


def test_a_wrong_setting_is_said_without_a_traceback(
    here: Path, inside: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        child.main(Order("p.json", "train.py:make_step", 1, 1, 60_000_000_000, "tpu", "", False), ())
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_program_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "-o", "p.json", "--", "python", "absent.py"]) == 2
    assert "absent.py: no such file" in capsys.readouterr().err


# ---- the summary


def rendered(profile: Profile) -> str:
    out = StringIO()
    render(profile, "vgg16.profile.json", Console(file=out, width=80))
    return out.getvalue()


def test_the_summary_fits_80_columns_and_names_the_longest_op_first() -> None:
    profile = vgg16()
    said = rendered(profile)
    assert max(len(line) for line in said.splitlines()) <= 80
    longest = by_name(profile)[0]
    lines = [line for line in said.splitlines() if "::" in line]
    assert lines[0].startswith(longest.name)
    assert len(lines) == 8
    heading, line = (line.split() for line in said.splitlines() if line.startswith(("op ", longest.name)))
    assert heading == ["op", "calls", "time", "share", "kind", "GB/s", "GFLOP/s"]
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(line[1:])


def test_a_summary_shortens_names_only_and_tells_kinds_from_heavy_to_light() -> None:
    profile = vgg16()
    kinds: tuple[OpKind, ...] = ("none", "light", "heavy")
    ops = tuple(
        replace(profile.ops[0], signature=f"aten::{'long_' * 9}(Float[{i}])", self_ns=54_812_345, calls=1, kind=kind)
        for i, kind in enumerate(kinds)
    )
    line = next(line for line in rendered(replace(profile, ops=ops)).splitlines() if "long" in line)
    assert line.split()[1:6] == ["3", "164", "ms", "100%", "heavy/light"]


def test_rates_are_per_second_of_the_ops_own_time() -> None:
    profile = vgg16()
    op = replace(profile.ops[0], calls=2.0, self_ns=1000, bytes_in=3000, bytes_out=1000, flops=7000, kind="heavy")
    line = next(line for line in rendered(replace(profile, ops=(op,))).splitlines() if op.name in line)
    assert line.split()[1:] == ["2", "2", "us", "100%", "heavy", "4", "7"]


def test_a_profile_of_times_alone_has_a_summary() -> None:
    said = rendered(replace(vgg16(), iteration=None, ops=()))
    assert "written to" in said
    assert "iteration" not in said
