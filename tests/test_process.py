"""A worker's parent ends it, also where it is at work."""

from pathlib import Path

import pytest

from herald.experiments import process
from herald.experiments.process import Launch, Worker

AT_WORK = """
import signal, sys
sys.stdin.readline()
print('{"ok": {}}', flush=True)
sys.stdin.readline()
while True:
    signal.pause()
"""


def test_a_worker_amid_a_command_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would finish the command before it sees the end of its input: minutes after a Ctrl-C."""
    monkeypatch.setattr(process, "_QUIT_TIMEOUT_S", 600.0)
    (tmp_path / "at_work.py").write_text(AT_WORK)
    with Worker(Launch("at-work", (("PYTHONPATH", str(tmp_path)),), module="at_work"), tmp_path) as worker:
        worker.call("load", timeout_s=60)
        worker.send("run")
    assert not Path(f"/proc/{worker.pid}").exists()
