"""`herald run` from inside: how long a program is the job. Its words and its exit codes are in test_cli.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from herald import bootstrap, cli
from herald.table import Table

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
