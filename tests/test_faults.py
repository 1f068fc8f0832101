"""kill -9 of anyone at the worst moment: the others go on, and a newcomer can attach at once. Real processes, CPU."""

import os
import signal
from typing import TYPE_CHECKING

import pytest

import herald
from herald import layout, native
from herald.clock import now_ns
from herald.table import Table

if TYPE_CHECKING:
    from conftest import Child

WITHIN_NS = 60 * 10**9  # a bound for a loaded CI machine; `herald experiment faults` measures the 1 s

SERVICE = """
    import herald
    job = herald.attach(priority="high", name="service", device="cpu")
    request = job.begin()
    print("holding"); input()
    request.end(); print("ended"); input()
"""

TRAINER = """
    import torch, herald
    from herald.table import Table
    a = torch.randn(300, 300)
    job = herald.attach(priority="low", name="trainer", device="cpu")
    for _ in range(5):
        a @ a
    print("trained"); input()
    print("stepping"); a @ a
    print("stepped", job.stats().gate_waits); input()
"""


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


def gate_is_closed(table: Table) -> bool:
    return table.gate_words().get(("cpu", layout.CLASS_HEAVY), 0) != 0


def step_into_the_gate(table: Table, trainer: "Child") -> None:
    """Let the trainer run its op and wait until it has come to the gate."""
    row = next(job.row for job in table.jobs() if job.name == "trainer")
    points = table.job(row).gate_points
    trainer.say("step")
    trainer.expect("stepping")
    while table.job(row).gate_points == points:
        pass


def test_a_service_killed_inside_a_request_does_not_hold_training(table: Table, child) -> None:
    """No daemon runs: the trainer's own agent notices, while its only Python thread waits at the gate."""
    trainer = child(TRAINER)
    trainer.expect("trained")
    service = child(SERVICE)
    service.expect("holding")
    step_into_the_gate(table, trainer)
    service.kill()
    assert trainer.expect("stepped") == "1"
    assert not gate_is_closed(table)
    with herald.attach(priority="high", name="next", device="cpu") as job, job.request():
        assert gate_is_closed(table)


def test_a_trainer_killed_at_the_gate_does_not_touch_the_service(table: Table, child) -> None:
    trainer = child(TRAINER)
    trainer.expect("trained")
    service = child(SERVICE)  # from here on the gate is closed
    service.expect("holding")
    step_into_the_gate(table, trainer)
    trainer.kill()
    service.say("end")
    service.expect("ended")
    assert not gate_is_closed(table)
    table.reap(now_ns())
    assert [job.name for job in table.jobs()] == ["service"]
    newcomer = child(TRAINER)
    newcomer.expect("trained")


def test_a_killed_daemon_is_missed_by_nobody(table: Table, child) -> None:
    daemon = child("""
        from herald.clock import now_ns
        from herald.table import Table
        Table.open().claim_daemon(now_ns())
        print("owns"); input()
    """)
    daemon.expect("owns")
    trainer = child(TRAINER)
    trainer.expect("trained")
    service = child(SERVICE)
    service.expect("holding")
    daemon.kill()
    step_into_the_gate(table, trainer)
    service.say("end")
    service.expect("ended")
    trainer.expect("stepped")
    assert not table.daemon_is_alive()
    table.claim_daemon(now_ns())
    table.release_daemon()


def test_a_stopped_service_loses_the_gate_and_takes_it_back(table: Table, child) -> None:
    """SIGSTOP: alive, so not reaped; silent, so others open its gate; once it goes on, it protects itself again."""
    service = child(SERVICE)
    service.expect("holding")
    assert gate_is_closed(table)
    os.kill(service.process.pid, signal.SIGSTOP)
    try:
        begin = now_ns()
        while gate_is_closed(table) and now_ns() - begin < WITHIN_NS:
            table.reap(now_ns())
        assert not gate_is_closed(table)
        assert [job.name for job in table.jobs()] == ["service"]
    finally:
        os.kill(service.process.pid, signal.SIGCONT)
    begin = now_ns()
    while not gate_is_closed(table) and now_ns() - begin < WITHIN_NS:
        pass
    assert gate_is_closed(table)
    service.say("end")
    service.expect("ended")
    assert native.table().herald_gate_wait(table.address, 0, WITHIN_NS)
