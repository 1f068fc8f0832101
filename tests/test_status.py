"""`herald status`: what it says of a table, for people and for programs."""

import json
import os
from io import StringIO

import pytest
from rich.console import Console

from herald import cli, status
from herald.fakes import MemoryTable
from herald.scheduler.snapshot import FREE_PLAN
from herald.table import Table
from tests.commands import herald

MS = 1_000_000
pytestmark = pytest.mark.usefixtures("domain")


def render(shown: status.Status) -> str:
    out = StringIO()
    status.render(shown, Console(file=out, width=80))
    return out.getvalue()


def busy_table() -> MemoryTable:
    table = MemoryTable("prod")
    chat = table.add_job(name="chat", slo_ns=50 * MS, slo_met=199, slo_missed=1, open_requests=2, alone_ns=60 * MS)
    table.record(chat, latency_ns=30 * MS, service_ns=60 * MS, count=200)
    vgg = {"gate_points": 10, "gate_waits": 4, "gate_wait_ns": 70 * MS, "sampled_ns": 4, "covered_ns": 3}
    table.add_job(name="vgg16", priority="low", longest_op_ns=2 * MS, **vgg)
    return table


def test_a_domain_in_which_nothing_started_has_a_status(domain: str) -> None:
    assert status.look(domain, 0) == status.Status(domain, exists=False)
    done = herald("status")
    assert done.returncode == 0
    assert f"domain   {domain}" in done.stdout
    assert "daemon   none" in done.stdout
    assert "nothing has started in it; " in done.stdout


def test_a_domain_that_was_named_and_does_not_exist_is_an_error_that_lists_those_that_do(
    domain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Table.open(domain)
    for words in ([], ["--json"]):
        assert cli.main(["status", "--domain", "nosuch", *words]) == 2
        shown = capsys.readouterr()
        (said,) = shown.err.splitlines()
        assert "--domain nosuch: no daemon and no job has started in it; domains that exist: " in said
        assert domain in said
        assert shown.out == ""
    assert cli.main(["status", "--domain", domain]) == 0
    assert "no jobs" in capsys.readouterr().out


def test_status_json_says_what_the_table_says(domain: str) -> None:
    table = Table.open(domain)
    row = table.claim(name="chat", priority="high", device="cpu", slo_ns=50 * MS)
    table.publish_plan(row, table.job(row).generation, FREE_PLAN.lead_ns, FREE_PLAN.queue_limit)
    shown = json.loads(herald("status", "--json").stdout)
    assert shown["domain"] == domain
    assert shown["daemon"]["state"] == "none"
    (job,) = shown["jobs"]
    assert (job["name"], job["priority"], job["slo_ns"], job["pid"]) == ("chat", "high", 50 * MS, os.getpid())
    assert job["plan"] == "never closes the gate"
    table.release(row)


def test_status_numbers() -> None:
    chat, vgg = status.status_of(busy_table(), 0).jobs
    assert chat.attainment == 0.995
    assert chat.p99_ns is not None
    assert 30 * MS <= chat.p99_ns < 32 * MS
    assert chat.infeasible_below_ns == 62_050_000  # 60 ms alone + 2 ms residual + 50 us
    assert (vgg.coverage, vgg.gate_waits, vgg.gate_wait_ns) == (0.75, 4, 70 * MS)
    assert vgg.plan is None


def test_without_a_daemon_only_plans_that_are_there_are_spoken_of() -> None:
    assert "daemon   none: jobs go on by the plans below\n" in render(status.status_of(busy_table(), 0))
    trainer = MemoryTable("prod")
    trainer.add_job(name="vgg16", priority="low")
    for table in (trainer, MemoryTable("prod")):
        assert "daemon   none\n" in render(status.status_of(table, 0))


def test_names_are_shown_as_they_are() -> None:
    table = MemoryTable()
    names = ("gpt2[/old]:fire:", "run[lr=1e-3]")
    for name, priority in zip(names, ("high", "low"), strict=True):
        table.add_job(name=name, priority=priority, engine=1, ttft_slo_ns=1)
    said = render(status.status_of(table, 0))
    assert all(name in said for name in names)


def test_requests_that_outran_a_hold_and_a_prediction_are_told() -> None:
    table = MemoryTable()
    table.add_job(name="chat", requests_overdue=2, open_requests=1, remaining_ns=0)
    said = render(status.status_of(table, 0))
    assert "2 ran longer than max_hold" in " ".join(said.split())
    assert "0 ns" not in said


def test_status_reads_well_at_80_columns() -> None:
    said = render(status.status_of(busy_table(), 0))
    assert max(len(line) for line in said.splitlines()) <= 80
    for part in ("chat", "50 ms", "99.50%", "vgg16", "70 ms", "75.00%", "cannot be guaranteed"):
        assert part in " ".join(said.split())  # a long sentence may wrap


def engine_table() -> MemoryTable:
    table = MemoryTable("prod")
    promised = {"ttft_slo_ns": 1_200 * MS, "tpot_slo_ns": 10 * MS}
    row = table.add_job(name="llm", device="GPU-12345678-9abc", engine=1, tokens=12_345_678, queued=12, **promised)
    table.row(row).alone_ns = 60 * MS
    table.record(row, latency_ns=3_000 * MS, service_ns=60 * MS, count=100)
    table.record_tokens(row, ttft_ns=1_100 * MS, tpot_ns=20 * MS, count=100)
    return table


def test_an_engine_has_its_times_to_first_token_and_per_token() -> None:
    (llm,) = status.status_of(engine_table(), 0).jobs
    assert (llm.slo_ns, llm.ttft_slo_ns, llm.tpot_slo_ns) == (None, 1_200 * MS, 10 * MS)
    assert llm.ttft_p99_ns is not None
    assert 1_100 * MS <= llm.ttft_p99_ns < 1_180 * MS
    assert llm.tpot_p99_ns is not None
    assert 20 * MS <= llm.tpot_p99_ns < 21.5 * MS
    assert (llm.tokens, llm.queued, llm.infeasible_part) == (12_345_678, 12, "tpot")


def test_the_times_of_an_engine_read_well_at_80_columns() -> None:
    said = render(status.status_of(engine_table(), 0))
    assert max(len(line) for line in said.splitlines()) <= 80
    for part in ("TTFT SLO", "1.2 s", "TPOT SLO", "20.5 ms", "12345678", "ms per output token cannot be guaranteed"):
        assert part in " ".join(said.split())
    assert "TTFT" not in render(status.status_of(busy_table(), 0))


@pytest.mark.parametrize("mps", [0, 1])
def test_a_share_without_mps_is_marked(mps: int) -> None:
    table = MemoryTable()
    table.add_job(name="vgg16", priority="low", sm_total=132, sm_granted=116, mps=mps)
    assert ("vgg16: its share of the SMs isolates nothing without MPS" in render(status.status_of(table, 0))) != mps


def test_a_coverage_that_is_not_known_is_a_dash_and_null() -> None:
    table = MemoryTable()
    table.add_job(name="vgg16", priority="low", gated_ns=3)
    shown = status.status_of(table, 0)
    assert shown.jobs[0].coverage is None
    assert render(shown).split()[-1] == "-"


@pytest.mark.parametrize(("age_ns", "state"), [(50 * MS, "alive"), (5_000 * MS, "stale")])
def test_a_daemon_that_owns_but_does_not_beat_is_stale(age_ns: int, state: str) -> None:
    table = MemoryTable()
    table.claim_daemon(1_000 * MS)
    table.publish_policy("laxity")
    shown = status.status_of(table, 1_000 * MS + age_ns).daemon
    assert (shown.state, shown.policy, shown.pid) == (state, "laxity", os.getpid())
    assert f"{state}" in render(status.Status("x", shown))
