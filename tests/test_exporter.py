"""Prometheus metrics: what a table says, what remains of jobs that left, and one real scrape of a real daemon."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from herald.errors import DaemonError
from herald.fakes import FakeClock, MemoryTable
from herald.scheduler import exporter
from herald.scheduler.daemon import Daemon
from herald.scheduler.exporter import TableCollector, served
from herald.scheduler.policies import load

MS = 1_000_000
SERVICE = {"domain": "fake", "job": "chat", "priority": "high", "device": "cpu"}
TRAINER = {"domain": "fake", "job": "vgg", "priority": "low", "device": "cpu"}


class Scraped:
    """The metrics of a table, as a scrape sees them."""

    def __init__(self, table: MemoryTable) -> None:
        self.table = table
        self.clock = FakeClock()
        self.collector = TableCollector(table, self.clock)
        self._registry = CollectorRegistry()
        self._registry.register(self.collector)

    def __call__(self, name: str, labels: dict[str, str] | None = None) -> float | None:
        return self._registry.get_sample_value(name, {"domain": "fake"} if labels is None else labels)


@pytest.fixture
def scraped() -> Scraped:
    return Scraped(MemoryTable())


def test_a_services_latencies_are_a_histogram_with_edges_of_the_row(scraped: Scraped) -> None:
    row = scraped.table.add_job(name="chat", slo_ns=50 * MS, slo_met=3, slo_missed=1)
    for latency_ms in (1, 10, 10, 100):
        scraped.table.record(row, latency_ns=latency_ms * MS)
    name = "herald_request_latency_seconds"
    assert scraped(f"{name}_bucket", SERVICE | {"le": "0.001024"}) == 1
    assert scraped(f"{name}_bucket", SERVICE | {"le": "0.012288"}) == 3
    assert scraped(f"{name}_bucket", SERVICE | {"le": "+Inf"}) == 4
    assert scraped(f"{name}_count", SERVICE) == 4
    assert scraped(f"{name}_sum", SERVICE) == pytest.approx(0.121, rel=1 / 32)
    assert scraped("herald_requests_total", SERVICE) == 4
    assert scraped("herald_slo_violations_total", SERVICE) == 1
    assert scraped("herald_slo_seconds", SERVICE) == 0.05


def test_tokens_have_their_times_and_slos_where_they_are_told(scraped: Scraped) -> None:
    row = scraped.table.add_job(name="chat", ttft_slo_ns=200 * MS, tpot_slo_ns=30 * MS)
    scraped.table.add_job(name="plain", slo_ns=50 * MS)
    scraped.table.record_tokens(row, ttft_ns=150 * MS, tpot_ns=20 * MS, count=4)
    for name, mean_s in (("herald_time_to_first_token_seconds", 0.15), ("herald_time_per_token_seconds", 0.02)):
        assert scraped(f"{name}_count", SERVICE) == 4
        assert scraped(f"{name}_sum", SERVICE) == pytest.approx(4 * mean_s, rel=1 / 32)
        assert scraped(f"{name}_count", SERVICE | {"job": "plain"}) is None
    assert scraped("herald_slo_time_to_first_token_seconds", SERVICE) == 0.2
    assert scraped("herald_slo_time_per_token_seconds", SERVICE) == 0.03
    assert scraped("herald_slo_seconds", SERVICE) is None
    assert scraped("herald_slo_target_ratio", SERVICE) == 0.99


def test_a_trainers_counters_are_in_seconds_and_its_coverage_is_absent_until_known(scraped: Scraped) -> None:
    row = scraped.table.add_job(
        name="vgg", priority="low", gate_wait_ns=2_500 * MS, gated_ns=900 * MS, light_ns=100 * MS, ops_unknown=7
    )
    assert scraped("herald_gate_wait_seconds_total", TRAINER) == 2.5
    assert scraped("herald_gated_device_seconds_total", TRAINER) == pytest.approx(0.9)
    assert scraped("herald_light_device_seconds_total", TRAINER) == pytest.approx(0.1)
    assert scraped("herald_unknown_ops_total", TRAINER) == 7
    assert scraped("herald_gate_coverage_ratio", TRAINER) is None
    scraped.table._rows[row].sampled_ns, scraped.table._rows[row].covered_ns = 1000, 990
    assert scraped("herald_gate_coverage_ratio", TRAINER) == 0.99


def test_metrics_of_one_priority_are_not_given_for_the_other(scraped: Scraped) -> None:
    scraped.table.add_job(name="chat")
    scraped.table.add_job(name="vgg", priority="low")
    assert scraped("herald_gate_wait_seconds_total", SERVICE) is None
    assert scraped("herald_requests_total", TRAINER) is None
    assert scraped("herald_request_latency_seconds_count", TRAINER) is None
    assert scraped("herald_slo_seconds", SERVICE) is None  # it has none


def test_the_domain_says_who_is_there_and_whether_a_daemon_is(scraped: Scraped) -> None:
    scraped.table.add_job(name="chat")
    assert scraped("herald_daemon_up") == 0
    scraped.table.claim_daemon(scraped.clock())
    scraped.table.publish_policy("laxity")
    scraped.clock.advance(1500 * MS)
    assert scraped("herald_daemon_up") == 1
    assert scraped("herald_daemon_heartbeat_age_seconds") == 1.5
    assert scraped("herald_daemon_info", {"domain": "fake", "policy": "laxity"}) == 1
    assert scraped("herald_jobs", {"domain": "fake", "priority": "high"}) == 1
    assert scraped("herald_jobs", {"domain": "fake", "priority": "low"}) == 0
    assert scraped("herald_gate_closed", {"domain": "fake", "device": "cpu"}) == 0


def test_counters_go_on_when_a_job_leaves_and_another_of_its_name_comes(scraped: Scraped) -> None:
    first = scraped.table.add_job(name="chat", requests_done=5)
    scraped.collector.observe()
    scraped.table._rows[first].requests_done = 6  # after the last look
    scraped.table.release(first)
    assert scraped("herald_requests_total", SERVICE) == 6
    assert scraped("herald_open_requests", SERVICE) is None
    scraped.table.add_job(name="chat", requests_done=1)
    assert scraped("herald_requests_total", SERVICE) == 7


def test_what_was_last_seen_counts_where_the_row_is_another_jobs_already(scraped: Scraped) -> None:
    row = scraped.table.add_job(name="chat", requests_done=5)
    scraped.table.record(row, latency_ns=MS)
    scraped.collector.observe()
    scraped.table.release(row)
    assert scraped.table.add_job(name="other", requests_done=100) == row
    assert scraped("herald_requests_total", SERVICE) == 6
    assert scraped("herald_request_latency_seconds_count", SERVICE) == 1


def test_jobs_of_one_name_are_one_series(scraped: Scraped) -> None:
    for covered_ns in (400, 500):
        scraped.table.add_job(name="vgg", priority="low", ops_seen=10, sampled_ns=500, covered_ns=covered_ns)
    assert scraped("herald_ops_total", TRAINER) == 20
    assert scraped("herald_gate_coverage_ratio", TRAINER) == 0.9


def test_series_of_jobs_that_left_are_bounded(scraped: Scraped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "MOST_SERIES", 3)
    for number in range(5):
        row = scraped.table.add_job(name=f"job{number}", requests_done=1)
        scraped.collector.observe()
        scraped.table.release(row)
        scraped.collector.observe()
    found = [scraped("herald_requests_total", SERVICE | {"job": f"job{number}"}) for number in range(5)]
    assert found == [None, None, 1, 1, 1]


def test_every_tick_of_the_daemon_looks(scraped: Scraped) -> None:
    daemon = Daemon(scraped.table, load("strict"), scraped.collector.observe)
    row = scraped.table.add_job(name="chat", requests_done=2)
    daemon.tick(scraped.clock.advance(50 * MS))
    scraped.table.release(row)
    assert scraped.table.add_job(name="other") == row
    assert scraped("herald_requests_total", SERVICE) == 2


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_scrape_over_http_and_a_port_that_is_free_again_afterwards(scraped: Scraped) -> None:
    scraped.table.add_job(name='odd "name"\n', requests_done=3)
    with served(scraped.collector, "127.0.0.1", 0) as port:
        assert scrape(port)["herald_requests_total"] == 3
    with served(scraped.collector, "127.0.0.1", port):
        pass


def test_a_port_in_use_is_an_error_that_says_what_to_do(scraped: Scraped) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DaemonError, match=rf"metrics.listen = '127.0.0.1:{port}'.*in use.*another port"):
            served(scraped.collector, "127.0.0.1", port).__enter__()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


DAEMON = """
    import logging, os, signal, sys, threading
    from herald import config
    from herald.errors import HeraldError
    from herald.scheduler import daemon
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    try:
        daemon.run(config.load(sys.stdin.readline().strip()))
        print("ended in order")
    except HeraldError as error:
        print("refused", error)
"""


def test_the_daemon_serves_metrics_and_stops_serving_with_its_end(
    domain: str, child: Callable[..., Any], tmp_path: Path
) -> None:
    port = free_port()
    path = tmp_path / "herald.toml"
    path.write_text(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    process = child(DAEMON)
    process.say(str(path))
    assert process.expect("metrics: ") == f"http://127.0.0.1:{port}/metrics"
    process.expect("running")
    assert scrape(port)["herald_daemon_up"] == 1
    second = child(DAEMON, HERALD_DOMAIN=f"{domain}-2")
    second.say(str(path))
    assert f"metrics.listen = '127.0.0.1:{port}'" in second.expect("refused")
    process.process.terminate()
    process.expect("ended in order")
    with pytest.raises(OSError):
        scrape(port)
