"""`print(job.stats())`: a few lines for people."""

from herald.fakes import MemoryTable
from herald.job_view import JobView

MS = 1_000_000
LONGEST_NAME = "x" * 47


def test_a_service_in_words() -> None:
    table = MemoryTable()
    row = table.add_job(name="chat", slo_ns=50 * MS, slo_met=199, slo_missed=1, open_requests=2)
    table.record(row, latency_ns=30 * MS, count=200)
    table.publish_feasibility(row, table.job(row).generation, "load", 60 * MS)
    table.row(row).requests_overdue = 3
    assert str(table.job(row)).splitlines() == [
        "chat (priority high, cpu)",
        "  requests: 200 done, 2 open",
        "  overdue: 3 ran longer than max_hold, beside training from then on",
        "  SLO met: 99.50% of requests, target 99.00%",
        "  latency: p50 30.7 ms, p99 30.7 ms, SLO 50 ms",
        "  too many are late behind a closed gate, too: the load is too high, or the host",
        "    too slow",
    ]


def test_an_engine_in_words_has_the_times_of_its_tokens() -> None:
    table = MemoryTable()
    row = table.add_job(name="llm", ttft_slo_ns=200 * MS, tpot_slo_ns=30 * MS, engine=1)
    assert str(table.job(row)).splitlines()[2:] == [
        "  first token: p50 -, p99 -, SLO 200 ms",
        "  per further token: p50 -, p99 -, SLO 30 ms",
    ]
    table.record_tokens(row, ttft_ns=100 * MS, tpot_ns=20 * MS)
    table.publish_feasibility(row, table.job(row).generation, "alone", 40 * MS)
    assert str(table.job(row)).splitlines()[2:] == [
        "  first token: p50 102 ms, p99 102 ms, SLO 200 ms",
        "  per further token: p50 20.5 ms, p99 20.5 ms, SLO 30 ms",
        "  an SLO below 40 ms per output token cannot be guaranteed (it is too slow",
        "    alone)",
    ]


def test_a_trainer_in_words() -> None:
    table = MemoryTable()
    books = {"gated_ns": 900 * MS, "light_ns": 100 * MS, "gate_points": 10, "gate_waits": 4, "gate_wait_ns": 70 * MS}
    row = table.add_job(
        name="vgg16", priority="low", train_steps=12, sm_total=132, sm_granted=116, sampled_ns=4, covered_ns=3, **books
    )
    assert str(table.job(row)).splitlines() == [
        "vgg16 (priority low, cpu)",
        "  training: 12 optimizer steps, 1 s of predicted device time",
        "  gate: 10 points, 4 waits of 70 ms in all, coverage 75.00%",
        "  SMs: 116 of 132",
    ]


def test_lines_fit_into_80_columns() -> None:
    table = MemoryTable()
    most = 10**12 - 1
    rows = [
        table.add_job(name=LONGEST_NAME, device="GPU-12345678-9abc", engine=1, requests_done=most, tpot_slo_ns=1),
        table.add_job(name=LONGEST_NAME, priority="low", train_steps=most, gate_points=most, gate_waits=most),
    ]
    table.publish_feasibility(0, 1, "residual", 9_990 * MS)
    for row in rows:
        assert max(map(len, str(table.job(row)).splitlines())) <= 80


def test_a_job_without_a_row_has_words_and_the_repr_is_as_it_was() -> None:
    empty = JobView.empty("chat", "high")
    assert str(empty) == "chat (priority high)\n  requests: 0 done, 0 open"
    assert repr(empty).startswith("JobView(row=-1, generation=0, name='chat'")
