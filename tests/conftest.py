"""What every test may ask for: a domain of its own, removed afterwards; scripts in real processes."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from herald.hooks.job import detach_all
from herald.table import Table

ROOT = Path(__file__).resolve().parent.parent

# The same examples every time: a test that fails for one commit in ten fails for the wrong one.
# `--hypothesis-profile=default` looks further.
hypothesis.settings.register_profile("herald", derandomize=True)
hypothesis.settings.load_profile("herald")


class Child:
    """A Python process that runs a script and speaks to the test by lines, so that nobody ever sleeps."""

    def __init__(self, script: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env,
        )

    def expect(self, word: str) -> str:
        """Read lines until one starts with the word; the rest of that line. Fails when the process ends first."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line[len(word) :].strip()
        raise AssertionError(f"the process ended ({self.process.wait()}) without saying {word!r}")

    def say(self, line: str) -> None:
        """Write one line to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """kill -9, and wait for it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may use Herald, too."""
    for name in ("HERALD_LOG", "HERALD_CONFIG", "HERALD_DISABLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def domain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A domain that nobody else uses."""
    name = f"test-{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**8}"
    monkeypatch.setenv("HERALD_DOMAIN", name)
    yield name
    detach_all()
    Table.unlink(name, force=True)


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start commands; all of them are ended with the test, which would else wait for them if it fails."""
    programs: list[subprocess.Popen[str]] = []

    def start_command(*command: str) -> "subprocess.Popen[str]":
        programs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return programs[-1]

    yield start_command
    for program in programs:
        program.kill()
        if program.stdout:
            program.stdout.close()  # unread: what the program started may hold the other end
        program.wait()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Start processes; all of them are ended with the test."""
    children: list[Child] = []

    def start(script: str, **env: str) -> Child:
        children.append(Child(script, **env))
        return children[-1]

    yield start
    for each in children:
        each.kill()
