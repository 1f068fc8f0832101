"""`herald run` from inside: how long a program is the job. Its words and its exit codes are in test_cli.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from herald import cli
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


def test_an_interpreter_without_herald_is_told_before_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], domain: str
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')  # without site-packages
    bare.chmod(0o755)
    assert cli.main(["run", "--priority", "low", "--domain", domain, "--", str(bare), "train.py"]) == 2
    assert (
        f"{bare} has no herald: install it there, or run the program with {sys.executable}" in capsys.readouterr().err
    )


def test_a_program_is_the_job_until_its_last_thread_is_done(domain: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(LATER)
    command = [sys.executable, "-m", "herald.bootstrap", domain, "train", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "['train']\n"), done.stderr
    assert done.stderr.endswith("the main thread is done\n")
    assert Table.open(domain).jobs() == []
