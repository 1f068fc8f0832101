"""An experiment's daemon does not outlive it, however it ends."""

import os
import select
from collections.abc import Callable
from typing import Any

from herald.domains import segment_path

OWNER = """
    import pathlib, sys, tempfile
    from herald.experiments.domain import PrivateDomain
    domain = PrivateDomain("lifeline", pathlib.Path(tempfile.mkdtemp()))
    pid = domain.start_daemon("strict")
    print("daemon", pid, domain.name, flush=True)
    sys.stdin.readline()
"""
LONGEST_S = 30


def test_a_killed_experiment_takes_its_daemon_and_its_table_along(child: Callable[..., Any]) -> None:
    owner = child(OWNER)
    pid, domain = owner.expect("daemon").split()
    daemon = os.pidfd_open(int(pid))
    try:
        assert segment_path(domain).exists()
        owner.kill()
        ended, _, _ = select.select([daemon], [], [], LONGEST_S)
        assert ended
        assert not segment_path(domain).exists()
    finally:
        os.close(daemon)
