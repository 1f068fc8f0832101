"""The recorder and the coverage counter on a real GPU: device times by events, without a synchronisation per op."""

import pytest

import herald
from herald.hooks.recorder import Recorder, Recording

torch = pytest.importorskip("torch")

REPEATS = 20


@pytest.fixture
def matrix():
    return torch.randn(4096, 4096, device="cuda")


def record(step) -> Recording:
    recorder = Recorder(torch.device("cuda"))
    with recorder:
        for _ in range(REPEATS):
            step()
    return recorder.result()


def self_times(recording: Recording, name: str):
    chosen = [i for i, s in enumerate(recording.signatures) if s.name == name]
    events = recording.events
    return [int(e["self_ns"]) for e in events if e["signature"] in chosen and e["device"] >= 0]


def elapsed_ns(step) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPEATS):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e6


def test_self_times_are_the_devices_and_sum_to_the_whole(matrix) -> None:
    def step() -> None:
        matrix @ matrix
        matrix + matrix

    step()
    for _ in range(2):  # the second recording knows which ops have work, and marks fewer borders
        recording = record(step)
        products, sums = self_times(recording, "aten::mm"), self_times(recording, "aten::add")
        assert len(products) == len(sums) == REPEATS
        assert sorted(products)[REPEATS // 2] > 5 * sorted(sums)[REPEATS // 2]
        assert sum(products) + sum(sums) == pytest.approx(elapsed_ns(step), rel=0.2)


def test_what_runs_on_other_streams_and_in_backward_is_timed(matrix) -> None:
    side = torch.cuda.Stream()
    weight = matrix.clone().requires_grad_()

    def step() -> None:
        with torch.cuda.stream(side):
            matrix @ matrix
        (matrix @ weight).sum().backward()

    step()
    recording = record(step)
    assert len(self_times(recording, "aten::mm")) == 3 * REPEATS
    assert min(self_times(recording, "aten::mm")) > 100_000


def test_a_recording_over_a_graph_capture_breaks_neither(matrix) -> None:
    out = torch.empty_like(matrix)
    torch.matmul(matrix, matrix, out=out)
    graph = torch.cuda.CUDAGraph()
    recorder = Recorder(torch.device("cuda"))
    with recorder, torch.cuda.graph(graph):
        torch.matmul(matrix, matrix, out=out)
    graph.replay()
    torch.cuda.synchronize()
    assert len(recorder.result().events) > 0


def saturate(job, step) -> None:
    """Until the coverage counter has its samples."""
    for _ in range(3000):
        step()
        if (job.stats().coverage or 0) and job.stats().sampled_ns > 5_000_000:
            return
    raise AssertionError(f"no samples of a busy stream: {job.stats()}")


def test_coverage_is_whole_for_ops_and_low_for_what_no_event_announces(domain: str, matrix) -> None:
    unseen = torch.cuda.CUDAGraph.replay  # as yet unknown to Herald
    graph = torch.cuda.CUDAGraph()
    out = torch.empty_like(matrix)
    torch.matmul(matrix, matrix, out=out)
    with torch.cuda.graph(graph):
        torch.matmul(matrix, matrix, out=out)
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:
        saturate(job, lambda: matrix @ matrix)
        assert job.stats().coverage > 0.9
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:

        def step() -> None:
            matrix @ matrix
            unseen(graph)

        saturate(job, step)
        assert job.stats().coverage < 0.7


def test_ops_that_went_into_a_graph_are_timed_where_they_run(matrix) -> None:
    """A capture takes no time: it must not teach the recorder that these ops have no work."""
    rows = matrix[:2000]
    step = lambda: rows @ matrix  # noqa: E731
    step()
    graph = torch.cuda.CUDAGraph()
    recorder = Recorder(torch.device("cuda"))
    with recorder, torch.cuda.graph(graph):
        for _ in range(3):
            step()
    assert max(self_times(recorder.result(), "aten::mm")) == 0
    assert min(self_times(record(step), "aten::mm")) > 100_000
