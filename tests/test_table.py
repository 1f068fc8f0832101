"""The shared table: layout, creation, membership, liveness, gate words."""

import ctypes
import errno
import mmap
import os
from contextlib import AbstractContextManager
from pathlib import Path

import posix_ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herald import BuildError, DaemonError, TableError, layout, native
from herald.clock import now_ns
from herald.domains import DomainLock, domains, segment_name
from herald.fakes import memory_table
from herald.job_view import Histogram
from herald.table import Table


def segment_path(domain: str) -> Path:
    return Path("/dev/shm") / segment_name(domain)[1:]


def test_python_and_native_layout_agree() -> None:
    """Every field that crosses the language border has one offset and one size."""
    constants, *fields = native.table().herald_table_layout().decode().split(";")
    assert [int(c) for c in constants.split(",")] == [
        layout.VERSION,
        layout.MAX_JOBS,
        ctypes.sizeof(layout.JobRow),
        layout.GATE_STRIDE_BYTES,
        layout.NUM_CLASSES,
        layout.MAX_DEVICES,
    ]
    for field in fields:
        name, offset, size = field.split(":")
        structure, member = name.split(".")
        found = getattr(getattr(layout, structure), member)
        assert (found.offset, found.size) == (int(offset), int(size)), name


def test_every_python_field_is_checked_against_native() -> None:
    """A field added on one side only fails here."""
    listed = {f.split(":")[0] for f in native.table().herald_table_layout().decode().split(";")[1:]}
    for structure in (layout.Header, layout.DeviceHold, layout.JobRow):
        for name, *_ in structure._fields_:
            if not name.startswith("_") and name != "reserved":
                assert f"{structure.__name__}.{name}" in listed


def test_who_opens_first_creates_and_others_join_the_same_table(domain: str) -> None:
    first, second = Table.open(domain), Table.open(domain)
    assert first.header.epoch_ns == second.header.epoch_ns
    assert segment_path(domain).stat().st_mode & 0o777 == 0o600
    assert domain in domains()


def test_a_domain_without_a_table_is_an_error_where_none_may_be_made(domain: str) -> None:
    with pytest.raises(TableError, match="has no table"):
        Table.open(domain, create=False)


def files(domain: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{segment_name(domain)[1:]}*"))


def test_without_the_native_library_no_file_is_made(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise BuildError("no C++ compiler")

    monkeypatch.setattr(native, "table", none)
    with pytest.raises(BuildError):
        Table.open(domain)
    assert files(domain) == []
    assert not Table.unlink(domain, force=True)


def test_a_table_that_has_no_room_leaves_no_file(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(TableError, match="no room"):
            Table.open(domain)
    assert files(domain) == []
    assert Table.open(domain).header.magic == layout.MAGIC


def damage(domain: str, offset: int, data: bytes) -> None:
    with segment_path(domain).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_wrong_magic_is_refused_and_nothing_is_repaired(domain: str) -> None:
    Table.open(domain)
    damage(domain, layout.Header.magic.offset, b"notatabl")
    for _ in range(2):
        with pytest.raises(TableError, match="not a Herald table.*herald reset"):
            Table.open(domain)


def test_another_layout_version_is_refused(domain: str) -> None:
    Table.open(domain)
    damage(domain, layout.Header.version.offset, (99).to_bytes(4, "little"))
    with pytest.raises(TableError, match="layout version 99"):
        Table.open(domain)


@pytest.mark.parametrize("size", [100, 8192])
def test_a_truncated_table_is_refused(domain: str, size: int) -> None:
    Table.open(domain)
    os.truncate(segment_path(domain), size)
    with pytest.raises(TableError, match=f"truncated.*{size} bytes"):
        Table.open(domain)


@pytest.mark.parametrize("field", ["page_bytes", "gates_offset", "rows_offset", "row_bytes", "num_rows"])
def test_a_damaged_header_is_an_error_and_never_a_crash(domain: str, field: str) -> None:
    Table.open(domain)
    place = getattr(layout.Header, field)
    damage(domain, place.offset, bytes(place.size))
    with pytest.raises(TableError, match=f"damaged.*{field} 0"):
        Table.open(domain)


def test_a_service_that_reopens_for_an_instant_does_not_escape_the_floor() -> None:
    """Closed time is paid back by opening, not forgotten at the first gap."""
    table = memory_table()
    table.add_job(heartbeat_ns=2**62)
    table.publish_limits(max_hold_ns=10**12, breather_ns=1, quantum_ns=250_000)
    lib, now = native.table(), now_ns()
    lib.herald_gate_close(table.address, 0, 0, now - 2 * 10**12)  # more than max_hold ago
    lib.herald_gate_open(table.address, 0, 0)
    table.publish_limits(max_hold_ns=10**12, breather_ns=10**12, quantum_ns=250_000)
    lib.herald_gate_close(table.address, 0, 0, now_ns())
    table.reap(now_ns())
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0


@pytest.mark.parametrize("size", [0, 65536])
def test_a_creation_that_died_halfway_is_made_anew(domain: str, size: int) -> None:
    """The magic is written last, so a segment without one has never been joined."""
    posix_ipc.SharedMemory(segment_name(domain), posix_ipc.O_CREX, mode=0o600, size=size).close_fd()
    assert Table.open(domain).header.magic == layout.MAGIC


def test_the_65th_job_is_refused_by_name(domain: str) -> None:
    table = Table.open(domain)
    rows = [table.claim(name=f"job{i}", priority="low", device="cpu") for i in range(layout.MAX_JOBS)]
    assert sorted(rows) == list(range(layout.MAX_JOBS))
    with pytest.raises(TableError, match="full: 64 jobs.*'late'"):
        table.claim(name="late", priority="low", device="cpu")
    table.release(rows[7])
    assert table.claim(name="late", priority="low", device="cpu") == 7


def test_a_device_has_a_bit_for_32_high_priority_jobs() -> None:
    table = memory_table()
    for _ in range(layout.MAX_HIGH_JOBS_PER_DEVICE):
        table.add_job()
    with pytest.raises(TableError, match="32 high-priority jobs"):
        table.add_job()
    table.add_job(device="GPU-other")


def test_a_row_is_reused_with_a_new_generation() -> None:
    table = memory_table()
    first = table.job(table.add_job(name="a"))
    table.release(first.row)
    second = table.job(table.add_job(name="b"))
    assert (second.row, second.generation) == (first.row, first.generation + 1)


def test_the_gate_is_open_only_when_no_job_holds_it() -> None:
    table = memory_table()
    table.add_job(), table.add_job()
    lib = native.table()
    lib.herald_gate_close(table.address, 0, 0, 1)
    lib.herald_gate_close(table.address, 0, 1, 1)
    lib.herald_gate_open(table.address, 0, 0)
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0b10
    assert not lib.herald_gate_wait(table.address, 0, 0)
    lib.herald_gate_open(table.address, 0, 1)
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0
    assert lib.herald_gate_wait(table.address, 0, 0)


def test_releasing_a_row_opens_its_gate() -> None:
    table = memory_table()
    row = table.add_job()
    native.table().herald_gate_close(table.address, 0, 0, 1)
    table.release(row)
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0


def test_a_gate_held_longer_than_max_hold_is_forced_open_for_a_while() -> None:
    table = memory_table()
    table.add_job(heartbeat_ns=10**12)
    table.publish_limits(max_hold_ns=1000, breather_ns=500, quantum_ns=250_000)
    native.table().herald_gate_close(table.address, 0, 0, 10_000)
    table.reap(11_000)
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 1
    table.reap(11_001)
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0


def test_a_job_that_stopped_beating_loses_the_gate() -> None:
    """A stopped (SIGSTOP) or wedged service must not hold training."""
    table = memory_table()
    table.add_job(heartbeat_ns=10**9, hold_since_ns=10**9)
    native.table().herald_gate_close(table.address, 0, 0, 10**9)
    # The reaper skips rows of its own process: ask as another one.
    reap = native.table().herald_table_reap
    reap(table.address, -1, 1, 3 * 10**9)
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 1
    reap(table.address, -1, 1, 3 * 10**9 + 1)
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0


def test_the_dead_are_reaped_and_their_gate_opens(domain: str, child) -> None:
    """kill -9 frees the record lock; whoever looks next frees the row and the bit, once."""
    service = child("""
        from herald import native
        from herald.clock import now_ns
        from herald.table import Table
        table = Table.open()
        row = table.claim(name="victim", priority="high", device="cpu")
        native.table().herald_gate_close(table.address, 0, 0, now_ns())
        print("closed", row); input()
    """)
    row = int(service.expect("closed"))
    table = Table.open(domain)
    assert table.reap(now_ns()) == []
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 1
    service.kill()
    assert table.reap(now_ns()) == [row]
    assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0
    assert table.jobs() == []
    assert table.reap(now_ns()) == []


def test_a_forked_child_keeps_nothing_alive(domain: str, child) -> None:
    """Record locks are not inherited: a worker that outlives its job does not hold the row."""
    job = child("""
        import os
        from herald.table import Table
        table = Table.open()
        table.claim(name="parent", priority="low", device="cpu")
        pid = os.fork()
        if pid == 0:
            os.read(0, 1)  # outlives the parent
            os._exit(0)
        print("forked", pid); input()
    """)
    orphan = int(job.expect("forked"))
    table = Table.open(domain)
    try:
        job.kill()
        assert table.reap(now_ns()) == [0]
    finally:
        os.kill(orphan, 9)


def test_a_second_daemon_is_refused_and_told_who_the_first_is(domain: str, child) -> None:
    first = child("""
        from herald.clock import now_ns
        from herald.table import Table
        Table.open().claim_daemon(now_ns())
        print("owner"); input()
    """)
    first.expect("owner")
    table = Table.open(domain)
    with pytest.raises(DaemonError, match=f"pid {first.process.pid}"):
        table.claim_daemon(now_ns())
    first.kill()
    table.claim_daemon(now_ns())
    with pytest.raises(DaemonError, match=f"pid {os.getpid()}"):
        Table.open(domain).claim_daemon(now_ns())
    table.release_daemon()


def test_reset_is_refused_while_anyone_lives_and_then_removes_everything(domain: str, child) -> None:
    job = child("""
        from herald.table import Table
        Table.open().claim(name="x", priority="low", device="cpu")
        print("in"); input()
    """)
    job.expect("in")
    with pytest.raises(TableError, match="in use"):
        Table.unlink(domain)
    job.kill()
    assert Table.unlink(domain)
    assert files(domain) == []
    assert not Table.unlink(domain)


def test_a_reset_does_not_remove_what_was_made_while_it_waited(
    domain: str, child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two resets at once, and a job that starts after the first: the second must see that it lives."""
    Table.open(domain)
    wait_for_lock = DomainLock.membership

    def overtaken(lock: DomainLock) -> AbstractContextManager[None]:
        monkeypatch.setattr(DomainLock, "membership", wait_for_lock)
        assert Table.unlink(domain)
        child("""
            from herald.table import Table
            Table.open().claim(name="x", priority="low", device="cpu")
            print("in"); input()
        """).expect("in")
        return wait_for_lock(lock)

    monkeypatch.setattr(DomainLock, "membership", overtaken)
    with pytest.raises(TableError, match="in use"):
        Table.unlink(domain)
    assert [job.name for job in Table.open(domain).jobs()] == ["x"]


def test_a_table_that_was_reset_cannot_be_joined_any_more(domain: str) -> None:
    old = Table.open(domain)
    Table.unlink(domain, force=True)
    new = Table.open(domain)
    with pytest.raises(TableError, match="was reset"):
        old.claim(name="x", priority="low", device="cpu")
    assert new.claim(name="x", priority="low", device="cpu") == 0


def test_many_processes_that_start_at_once_share_one_table(domain: str, child) -> None:
    script = """
        from herald.table import Table
        input()
        table = Table.open()
        print("row", table.claim(name="x", priority="low", device="cpu"), table.header.epoch_ns)
        input()
    """
    racers = [child(script) for _ in range(6)]
    for racer in racers:
        racer.say("go")
    rows, epochs = zip(*(racer.expect("row").split() for racer in racers), strict=True)
    assert len(set(rows)) == 6
    assert len(set(epochs)) == 1


def test_membership_can_be_nested_in_one_thread(domain: str) -> None:
    lock = DomainLock.of(domain)
    with lock.membership(), lock.membership():
        pass


@given(st.integers(0, 60_000_000_000))
def test_a_duration_falls_into_the_bucket_that_holds_it(duration_ns: int) -> None:
    """To the microsecond, and to 1/16 of its length."""
    low, high = layout.bucket_bounds_ns(native.table().herald_bucket(duration_ns))
    assert low <= duration_ns < high
    assert high - low <= max(1000, low / 16)


@given(st.lists(st.integers(1_000, 10**10), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_is_the_sorted_one_to_a_sixteenth(durations_ns: list[int], q: float) -> None:
    counts = [0] * layout.HISTOGRAM_BUCKETS
    for duration in durations_ns:
        counts[native.table().herald_bucket(duration)] += 1
    import numpy as np

    found = Histogram(np.array(counts, dtype=np.uint32)).quantile(q)
    exact = sorted(durations_ns)[max(1, int(np.ceil(q * len(durations_ns)))) - 1]
    assert found is not None
    assert exact < found <= exact + max(1000, exact / 16) + 1


def test_an_empty_histogram_has_no_quantile() -> None:
    assert memory_table().job(0).latency.quantile(0.99) is None


def test_the_native_library_refuses_nothing_silently_when_memory_is_private() -> None:
    """The shipped fake runs the same native code over anonymous memory."""
    table = memory_table()
    assert isinstance(table._memory, mmap.mmap)
    assert table.reap(now_ns()) == []


def test_the_word_of_class_light_says_who_could_close_the_gate(domain: str) -> None:
    table = Table.open(domain)
    assert table.gate_words().get(("cpu", layout.CLASS_ATTACHED), 0) == 0
    row = table.claim(name="serve", priority="high", device="cpu")
    trainer = table.claim(name="train", priority="low", device="cpu")
    assert table.gate_words()["cpu", layout.CLASS_ATTACHED] == 1
    table.reap(now_ns())
    assert table.gate_words()["cpu", layout.CLASS_ATTACHED] == 1
    table.release(row)
    table.release(trainer)
    assert table.gate_words()["cpu", layout.CLASS_ATTACHED] == 0
