"""Prometheus metrics of a domain, read from its table and served over HTTP by the daemon's process.

Only reads; nothing that happens here stops the daemon. Jobs with the same name, priority and device are one series.
Counters go on when jobs leave: the exporter adds up what left while it runs. A restarted daemon begins with the jobs
that it finds, which to Prometheus is a counter reset (rate() and increase() allow for it). Gauges are of the jobs that
are there. Lost is at most what a job counted between the daemon's last tick and its end, and that only where another
job has taken its row meanwhile.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from herald import layout
from herald.clock import now_ns
from herald.errors import DaemonError
from herald.job_view import JobView
from herald.scheduler.metrics import COUNTERS, GAUGES, HISTOGRAMS, GaugeOf
from herald.scheduler.snapshot import JobKey, key_of
from herald.table import Table

MOST_SERIES = 1024  # of jobs that left; then those that left first are dropped

_SHORTEST_NS, _LONGEST_NS = 100_000, 100_000_000_000  # of the latency buckets


class Labels(NamedTuple):
    """What tells one series of a domain from another."""

    job: str
    priority: str
    device: str


@dataclass
class _Total:
    """Sums over jobs of one series, in the units of their rows."""

    counters: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(COUNTERS), np.int64))
    histograms: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(HISTOGRAMS), layout.HISTOGRAM_BUCKETS), np.int64)
    )

    def plus(self, job: JobView) -> "_Total":
        counters = np.array([counter.value(job) for counter in COUNTERS], np.int64)
        histograms = np.array([histogram.value(job).counts for histogram in HISTOGRAMS], np.int64)
        return _Total(self.counters + counters, self.histograms + histograms)


class TableCollector(Collector):
    """What Prometheus is told of a domain. `observe` and `collect` may run in different threads."""

    def __init__(self, table: Table, clock: Callable[[], int] = now_ns) -> None:
        self._table = table
        self._clock = clock
        self._lock = threading.Lock()
        self._live: dict[JobKey, JobView] = {}
        self._departed: dict[Labels, _Total] = {}

    def observe(self) -> None:
        """Take note of who is there and add up who has left since the last time. At every tick of the daemon."""
        with self._lock:
            # Read under the lock: an older look after a newer one would take a newcomer for one who left.
            self._note({key_of(job): job for job in self._table.jobs()})

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        self.observe()
        with self._lock:
            live: dict[Labels, list[JobView]] = {}
            for job in self._live.values():
                live.setdefault(_labels(job), []).append(job)
            departed = dict(self._departed)
        totals = {labels: _sum(departed.get(labels, _Total()), live.get(labels, [])) for labels in (departed | live)}
        yield from self._of_domain(live)
        yield from (self._histogram(i, totals) for i in range(len(HISTOGRAMS)))
        yield from (self._counter(i, totals) for i in range(len(COUNTERS)))
        yield from (self._gauge(gauge, live) for gauge in GAUGES)

    def _note(self, seen: dict[JobKey, JobView]) -> None:
        for key in self._live.keys() - seen.keys():
            last = self._live[key]
            now = self._table.job(key.row)  # a freed row keeps its numbers until another job takes it
            final = now if now.generation == key.generation else last
            labels = _labels(last)
            self._departed[labels] = self._departed.pop(labels, _Total()).plus(final)
        while len(self._departed) > MOST_SERIES:
            del self._departed[next(iter(self._departed))]
        self._live = seen

    def _of_domain(self, live: dict[Labels, list[JobView]]) -> Iterator[Metric]:
        domain, header = self._table.domain, self._table.header
        up = GaugeMetricFamily("herald_daemon_up", "1 while a daemon owns the domain.", labels=["domain"])
        up.add_metric([domain], float(self._table.daemon_is_alive()))
        yield up
        policy = header.policy.decode(errors="replace")
        yield InfoMetricFamily("herald_daemon", "The policy in force.", {"domain": domain, "policy": policy})
        beat = GaugeMetricFamily(
            "herald_daemon_heartbeat_age_seconds", "Since the daemon's last tick.", labels=["domain"]
        )
        beat.add_metric([domain], max(0, self._clock() - header.daemon_heartbeat_ns) / 1e9)
        yield beat
        count = GaugeMetricFamily("herald_jobs", "Jobs attached now.", labels=["domain", "priority"])
        for priority in layout.PRIORITIES:
            count.add_metric([domain, priority], sum(len(js) for to, js in live.items() if to.priority == priority))
        yield count
        closed = GaugeMetricFamily("herald_gate_closed", "1 while heavy ops wait.", labels=["domain", "device"])
        for (device, cls), word in self._table.gate_words().items():
            if cls == layout.CLASS_HEAVY:
                closed.add_metric([domain, device], float(word != 0))
        yield closed

    def _histogram(self, index: int, totals: dict[Labels, _Total]) -> Metric:
        histogram = HISTOGRAMS[index]
        family = HistogramMetricFamily(histogram.name, histogram.help, labels=["domain", *Labels._fields])
        for labels, total in totals.items():
            counts = total.histograms[index]
            if labels.priority == "high" and (histogram.is_always_there or counts.any()):
                cumulative = np.cumsum(counts)
                buckets = [(le, float(cumulative[place])) for place, le in _EDGES]
                buckets.append(("+Inf", float(cumulative[-1])))
                family.add_metric([self._table.domain, *labels], buckets, float(counts @ _MIDDLES_S))
        return family

    def _counter(self, index: int, totals: dict[Labels, _Total]) -> Metric:
        counter = COUNTERS[index]
        family = CounterMetricFamily(counter.name, counter.help, labels=["domain", *Labels._fields])
        for labels, total in totals.items():
            if labels.priority == counter.priority:
                family.add_metric([self._table.domain, *labels], float(total.counters[index]) * counter.scale)
        return family

    def _gauge(self, gauge: GaugeOf, live: dict[Labels, list[JobView]]) -> Metric:
        family = GaugeMetricFamily(gauge.name, gauge.help, labels=["domain", *Labels._fields])
        for labels, jobs in live.items():
            value = gauge.value(jobs) if labels.priority == gauge.priority else None
            if value is not None:
                family.add_metric([self._table.domain, *labels], value)
        return family


@contextmanager
def served(collector: Collector, host: str, port: int) -> Iterator[int]:
    """Serve ``collector`` at http://host:port/metrics from a thread, until left. Yields the port (given 0: a free one).

    Raises DaemonError where that address cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise DaemonError(
            f"metrics.listen = '{host}:{port}': cannot listen there ({error.strerror or error}): choose another "
            "address of this machine or another port, stop what uses it, or delete metrics.listen"
        ) from error
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _labels(job: JobView) -> Labels:
    return Labels(job.name, job.priority, job.device)


def _sum(total: _Total, jobs: Iterable[JobView]) -> _Total:
    for job in jobs:
        total = total.plus(job)
    return total


_BOUNDS_NS = [layout.bucket_bounds_ns(index) for index in range(layout.HISTOGRAM_BUCKETS)]
_MIDDLES_S = np.array([(low + high) / 2e9 for low, high in _BOUNDS_NS])
# Two buckets an octave, at edges of the row's own buckets, so that none is split: (index of the last one, "le").
_EDGES = [
    (index, str(high / 1e9))
    for index, (_, high) in enumerate(_BOUNDS_NS)
    if index % 8 == 7 and _SHORTEST_NS <= high <= _LONGEST_NS
]
