"""The stream gate on a real GPU: ops wait on the device, requests open the gate from their own streams."""

import threading

import pytest

import herald
from herald import layout, native
from herald.table import Table

torch = pytest.importorskip("torch")

NAP_MS = 20  # a pause after which a stream that was not gated would have finished


@pytest.fixture
def trainer(domain: str):
    """A low-priority job of this process whose matmul costs are known."""
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:
        a = torch.randn(2048, 2048, device="cuda")
        for _ in range(8):
            a @ a
            torch.cuda.synchronize()
        yield job, a


class Holder:
    """Another high-priority job that closes and opens the gate of this GPU by hand."""

    def __init__(self, domain: str, job: herald.Job) -> None:
        self.table = Table.open(domain)
        self.device = self.table.device_slot(job.stats().device)
        self.row = self.table.claim(name="holder", priority="high", device=job.stats().device)

    def close(self) -> None:
        native.table().herald_gate_close(self.table.address, self.device, 0, herald.clock.now_ns())

    def open(self) -> None:
        native.table().herald_gate_open(self.table.address, self.device, 0)

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self.table.release(self.row)


def finishes(event: "torch.cuda.Event") -> bool:
    """Whether the event has passed after a pause."""
    threading.Event().wait(NAP_MS / 1000)
    return event.query()


def assert_waits(holder: Holder, enqueue) -> None:
    """What is enqueued while the gate is closed runs when it opens, and not before."""
    holder.close()
    enqueue()
    done = torch.cuda.Event()
    done.record()
    assert not finishes(done)
    holder.open()
    done.synchronize()


def test_ops_wait_on_the_gpu_while_the_gate_is_closed(trainer, domain: str) -> None:
    job, a = trainer
    with Holder(domain, job) as holder:
        assert_waits(holder, lambda: [a @ a for _ in range(4)])
    assert job.stats().gate_points > 0


def test_a_captured_graph_is_gated_at_every_replay_and_outlives_the_job(trainer, domain: str) -> None:
    job, a = trainer
    graph = torch.cuda.CUDAGraph()
    out = torch.empty_like(a)
    with torch.cuda.graph(graph):
        for _ in range(4):
            torch.matmul(a, a, out=out)
    with Holder(domain, job) as holder:
        for _ in range(2):
            assert_waits(holder, graph.replay)
    job.detach()
    graph.replay()
    torch.cuda.synchronize()


def test_after_detach_nothing_is_gated(trainer, domain: str) -> None:
    job, a = trainer
    with Holder(domain, job) as holder:
        job.detach()
        holder.close()
        a @ a
        torch.cuda.synchronize()


def test_a_request_closes_the_gate_until_its_stream_is_done(domain: str) -> None:
    with herald.attach(priority="high", slo="1s", domain=domain, device="cuda") as job:
        table = Table.open(domain)
        device = job.stats().device
        a = torch.randn(8192, 8192, device="cuda")
        a @ a
        torch.cuda.synchronize()
        with job.request():
            assert table.gate_words()[device, layout.CLASS_HEAVY] == 1
            for _ in range(20):
                a @ a
        assert job.stats().open_requests == 1  # enqueued, not done
        torch.cuda.synchronize()
        assert native.table().herald_gate_wait(table.address, table.device_slot(device), 10**9)
        stats = job.stats()
        assert (stats.requests_done, stats.slo_met, stats.open_requests) == (1, 1, 0)


def test_overlapping_requests_on_two_streams_hold_until_the_last_is_done(domain: str) -> None:
    with herald.attach(priority="high", domain=domain, device="cuda") as job:
        table = Table.open(domain)
        slot = table.device_slot(job.stats().device)
        a = torch.randn(4096, 4096, device="cuda")
        slow, quick = torch.cuda.Stream(), torch.cuda.Stream()
        first, second = job.begin(), job.begin()
        with torch.cuda.stream(slow):
            for _ in range(200):
                a @ a
            first.end()
        with torch.cuda.stream(quick):
            second.end()
        quick.synchronize()
        if not slow.query():
            assert table.gate_words()[job.stats().device, layout.CLASS_HEAVY] == 1
        slow.synchronize()
        assert native.table().herald_gate_wait(table.address, slot, 10**9)
        assert job.stats().requests_done == 2


def test_a_request_may_end_on_a_thread_that_never_used_cuda(domain: str) -> None:
    """The null stream means the thread's own context, of which it has none: the end must still reach the GPU's."""
    with herald.attach(priority="high", domain=domain, device="cuda") as job:
        a = torch.randn(8192, 8192, device="cuda")
        request = job.begin()
        for _ in range(50):
            a @ a
        ender = threading.Thread(target=request.end)
        ender.start()
        ender.join()
        assert job.stats().requests_done == 0
        torch.cuda.synchronize()
        table = Table.open(domain)
        assert native.table().herald_gate_wait(table.address, table.device_slot(job.stats().device), 10**9)
        assert job.stats().requests_done == 1


def test_every_captured_graph_begins_with_a_wait_however_short_it_is(trainer, domain: str) -> None:
    job, _ = trainer
    small = torch.randn(1024, 1024, device="cuda")
    for _ in range(8):
        small @ small
        torch.cuda.synchronize()
    graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
    for graph in graphs:
        with torch.cuda.graph(graph):
            small @ small
    with Holder(domain, job) as holder:
        for graph in graphs:
            assert_waits(holder, graph.replay)


def test_both_priorities_in_one_process_are_refused_on_cuda(trainer, domain: str) -> None:
    with pytest.raises(herald.AttachError, match="two processes"):
        herald.attach(priority="high", domain=domain, device="cuda")


def test_the_cost_of_a_matmul_is_learnt_and_saved(trainer, domain: str, tmp_path) -> None:
    job, _ = trainer
    job.save_profile(tmp_path / "costs.json")
    assert "aten::mm(Float[2048, 2048], Float[2048, 2048])" in (tmp_path / "costs.json").read_text()
    assert job.stats().longest_op_ns > 0


def test_waits_are_enqueued_only_while_a_service_could_close_the_gate(trainer, domain: str) -> None:
    job, a = trainer
    for _ in range(4):
        a @ a
    assert job.stats().gate_points == 0
    with Holder(domain, job):
        for _ in range(4):
            a @ a
        points = job.stats().gate_points
        assert points > 0
    for _ in range(4):
        a @ a
    assert job.stats().gate_points == points
    torch.cuda.synchronize()
