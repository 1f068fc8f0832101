"""`herald run`: which commands it understands, and that a program is a job from its begin to its end."""

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from herald import bootstrap, cli
from herald.bootstrap import PythonCommand, attached
from herald.table import Table
from tests.commands import herald

pytestmark = pytest.mark.usefixtures("domain")


@pytest.mark.parametrize(
    ("command", "options", "target"),
    [
        ("python train.py --lr 1", (), ("train.py", "--lr", "1")),
        ("/usr/bin/python3.12 -u train.py", ("-u",), ("train.py",)),
        ("python -X dev -Wignore train.py -m x", ("-X", "dev", "-Wignore"), ("train.py", "-m", "x")),
        ("python -m pkg.train a", (), ("-m", "pkg.train", "a")),
        ("python -um pkg.train", ("-u",), ("-m", "pkg.train")),
        ("python -mpkg.train", (), ("-m", "pkg.train")),
        ("python -c pass a", (), ("-c", "pass", "a")),
        ("python --check-hash-based-pycs=never t.py", ("--check-hash-based-pycs=never",), ("t.py",)),
    ],
)
def test_python_commands_are_understood(command: str, options: tuple[str, ...], target: tuple[str, ...]) -> None:
    words = command.split()
    assert PythonCommand.parse(words) == PythonCommand(words[0], options, target)


def test_a_script_alone_runs_with_this_python() -> None:
    assert PythonCommand.parse(["./train.py", "x"]) == PythonCommand(sys.executable, (), ("./train.py", "x"))


@pytest.mark.parametrize("command", ["ls -l", "python", "python -u", "python -", "pythonic train"])
def test_what_is_no_python_program_cannot_be_attached(command: str) -> None:
    assert PythonCommand.parse(command.split()) is None


def test_a_job_is_named_after_its_program() -> None:
    def words(*target: str, name: str | None = None) -> list[str]:
        return attached(PythonCommand("python", ("-u",), target), "prod", name)

    assert words("a/train.py", "-x") == ["python", "-u", "-m", "herald.bootstrap", "prod", "train", "a/train.py", "-x"]
    assert words("-m", "pkg.mod")[5] == "pkg.mod"
    assert words("-m", "pkg.mod", name="mine")[5] == "mine"


SCRIPT = """
import json, os, sys
from herald.table import Table
(job,) = Table.open().jobs()
print(json.dumps({
    "argv": sys.argv, "name": __name__, "folder": sys.path[0], "file": sys.modules["__main__"].__file__,
    "job": [job.name, job.priority, job.pid == os.getpid()], "wait": os.environ.get("OMP_WAIT_POLICY"),
    "idle": os.sched_getscheduler(0) == os.SCHED_IDLE,
}))
sys.exit(7)
"""


def test_a_script_runs_as_it_would_alone_but_attached(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = herald("run", "--priority", "low", "--device", "cpu", "--", sys.executable, str(script), "--priority", "x")
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == {
        "argv": [str(script), "--priority", "x"],
        "name": "__main__",
        "folder": str(tmp_path),
        "file": str(script),
        "job": ["train", "low", True],
        "wait": "PASSIVE",
        "idle": True,
    }


def attaching(tmp_path: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """A script under `herald run` that knows Herald."""
    script = tmp_path / "train.py"
    script.write_text("import herald\nfrom herald.table import Table\n" + textwrap.dedent(program))
    return herald("run", "--priority=low", "--device=cpu", "--", sys.executable, str(script))


def test_a_script_that_attaches_itself_is_one_job_and_its_own(tmp_path: Path) -> None:
    done = attaching(
        tmp_path,
        """
        with herald.attach(priority="low", name="mine", device="cpu"):
            print([job.name for job in Table.open().jobs()])
        print(Table.open().jobs())
        """,
    )
    assert (done.returncode, done.stdout) == (0, "['mine']\n[]\n"), done.stderr


def test_where_a_script_cannot_attach_itself_it_is_still_the_job_of_run(tmp_path: Path) -> None:
    done = attaching(
        tmp_path,
        """
        from herald.hooks.trainer import LowJob

        start = LowJob._start

        def fails_once(job):
            LowJob._start = start
            raise herald.AttachError("no")

        LowJob._start = fails_once
        for _ in range(2):
            try:
                herald.attach(priority="low", name="mine", device="cpu")
            except herald.AttachError as error:
                print(error)
            print([job.name for job in Table.open().jobs()])
        """,
    )
    assert (done.returncode, done.stdout) == (0, "no\n['train']\n['mine']\n"), done.stderr


def test_in_another_domain_than_that_of_run_a_script_is_told(domain: str, tmp_path: Path) -> None:
    done = attaching(tmp_path, f"herald.attach(priority='low', device='cpu', domain='{domain}-b').detach()\n")
    assert f"in domain '{domain}-b' and not '{domain}'" in done.stderr
    Table.unlink(f"{domain}-b", force=True)


def test_a_signal_ends_the_program_itself(tmp_path: Path, start: "Callable[..., subprocess.Popen[str]]") -> None:
    script = tmp_path / "train.py"
    script.write_text("print('up', flush=True)\nimport signal\nsignal.pause()\n")
    run = ("-m", "herald", "run", "--priority=low", "--device=cpu", "--")
    program = start(sys.executable, *run, sys.executable, str(script))
    assert program.stdout
    assert program.stdout.readline() == "up\n"
    program.send_signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM


def test_a_service_gets_the_environment_and_attaches_itself(domain: str) -> None:
    done = herald(
        "run", "--priority=high", "--device=cpu", "sh", "-c", 'echo "$HERALD_DOMAIN $OMP_WAIT_POLICY"; exit 5'
    )
    assert (done.returncode, done.stdout) == (5, f"{domain} PASSIVE\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((), "no program"),
        (("--", "ls"), "not a Python program"),
        (("--", "/absent/python3", "train.py"), "cannot start '/absent/python3': No such file"),
        (("--", sys.executable, "absent.py"), "absent.py: no such file"),
    ],
)
def test_a_program_that_cannot_run_is_an_error(command: tuple[str, ...], said: str) -> None:
    done = herald("run", "--priority=low", "--device=cpu", *command)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


LATER = """
import threading
from herald.table import Table

def train():
    threading.main_thread().join()
    print([job.name for job in Table.open().jobs()])

threading.Thread(target=train).start()
raise SystemExit("the main thread is done")
"""


def _never() -> None:
    raise AssertionError("told too late")


def test_an_interpreter_without_herald_is_told_before_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, domain: str
) -> None:
    monkeypatch.setattr(bootstrap, "use_idle_class", _never)  # this process would be idle from then on
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')  # without site-packages
    bare.chmod(0o755)
    assert cli.main(["run", "--priority", "low", "--domain", domain, "--", str(bare), "train.py"]) == 2
    assert (
        f"{bare} has no herald: install it there, or run the program with {sys.executable}" in capsys.readouterr().err
    )


PICKLES = """
import atexit, pickle, threading

class Net: pass

def later():
    threading.main_thread().join()
    print(pickle.dumps(Net())[:1] == b"\\x80")

threading.Thread(target=later).start()
atexit.register(lambda: print(len(pickle.dumps(Net())) > 0))
"""


def test_what_a_script_defines_can_be_pickled_to_the_end(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(PICKLES)
    command = [sys.executable, "-c", f"from herald.bootstrap import run_target; run_target([{str(script)!r}])"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr


def test_a_program_is_the_job_until_its_last_thread_is_done(domain: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(LATER)
    command = [sys.executable, "-m", "herald.bootstrap", domain, "train", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "['train']\n"), done.stderr
    assert done.stderr.endswith("the main thread is done\n")
    assert Table.open(domain).jobs() == []
