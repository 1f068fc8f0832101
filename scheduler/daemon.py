"""The daemon of a domain: reaps the dead, asks the policy, publishes plans, says what it does.

It is in nobody's critical path. Jobs close and open gates themselves by the plans in their rows; a daemon
that dies leaves the last plans in force, and one that leaves in order puts the strict plan back. Never
imports torch.
"""

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from herald.clock import now_ns
from herald.config import Config, Limits, MetricsConfig, choose_domain, find
from herald.durations import format_ns
from herald.errors import TableError
from herald.job_view import JobView
from herald.layout import LEAD_ALWAYS, LEAD_NEVER, NO_QUEUE_LIMIT
from herald.scheduler import policies
from herald.scheduler.learning import Observer
from herald.scheduler.mps import MpsServer
from herald.scheduler.policies import Policy
from herald.scheduler.prediction import infeasible
from herald.scheduler.signals import StopSignals, stop_signals
from herald.scheduler.snapshot import (
    STRICT_PLAN,
    Decision,
    Infeasible,
    JobKey,
    Memory,
    Mode,
    Pace,
    Plan,
    TrainerPlan,
    key_of,
)
from herald.slo import OF_PART
from herald.table import Table

PERIOD_S = 0.05
LONGEST_PERIOD_S = 0.25  # a tick that was only slow because it was preempted must not make the daemon look dead
MAX_CPU_SHARE = 0.02

log = logging.getLogger("herald.daemon")


class Daemon:
    """One domain under one policy. All effects are on the table it is given; `tick` is all that time does."""

    def __init__(
        self,
        table: Table,
        policy: Policy,
        watch: Callable[[], None] = lambda: None,
        limits: Limits | None = None,
    ) -> None:
        self._table = table
        self._policy = policy
        self._limits = limits
        self._observer = Observer()
        self.decision = Decision()  # the last one
        self._watch = watch  # looks at the table at every tick, too
        self._known: dict[JobKey, JobView] = {}
        self._modes: dict[str, Mode] = {}
        self._warned: dict[JobKey, set[str]] = {}  # of each job, what is said of it once

    def tick(self, now_ns: int) -> None:
        """Beat, reap, decide, publish what changed. Raises TableError once the domain was reset."""
        if not self._table.is_current():
            raise TableError(
                f"domain {self._table.domain!r} was reset beneath its daemon: jobs that had joined go on without one; "
                "start the daemon anew for those that join now"
            )
        self._table.beat(now_ns)
        freed = self._table.reap(now_ns)
        jobs = {key_of(job): job for job in self._table.jobs()}
        self._watch()
        self._log_membership(jobs, freed)
        self._keep_floors(jobs.values())
        self._known = jobs
        self._warned = {key: said for key, said in self._warned.items() if key in jobs}
        snapshot = self._observer.observe(jobs.values(), now_ns)
        self.decision = self._policy.decide(snapshot, now_ns)
        self._observer.decided(self.decision)
        self._apply(self.decision)
        self._tell_unmet(self.decision)
        self._tell_overdue()
        self._tell_infeasible(infeasible(snapshot))
        self._log_modes(self.decision, snapshot.memory)

    def withdraw(self) -> None:
        """Put every job back on the plan that it has without a daemon: strict, and no limits."""
        for job in self._table.jobs():
            if job.priority == "high":
                self._publish(key_of(job), STRICT_PLAN)
                self._table.publish_feasibility(job.row, job.generation, "", 0)
            else:
                self._limit(key_of(job), TrainerPlan())

    def _apply(self, decision: Decision) -> None:
        for key, plan in decision.plans.items():
            job = self._known[key]
            if plan != Plan.of(job):
                self._publish(key, plan)
                level = logging.INFO if _kind(plan) != _kind(Plan.of(job)) else logging.DEBUG
                log.log(level, "plan: %s %s", job.name, describe(plan))
        for key, job in self._known.items():
            limits = decision.trainer_plans.get(key, TrainerPlan())
            if job.priority == "low" and limits != TrainerPlan.of(job):
                self._limit(key, limits)
            if limits.sm_count and not job.mps:
                self._tell_of_idle_share(key, job, limits.sm_count)

    def _keep_floors(self, jobs: Iterable[JobView]) -> None:
        """The highest floor that any trainer was promised is that of all: a gate is open for all or for none."""
        if self._limits is None:
            return
        floor = max([self._limits.floor, *(job.floor for job in jobs if job.priority == "low")])
        publish_limits(self._table, replace(self._limits, floor=floor))

    def _tell_infeasible(self, found: Sequence[Infeasible]) -> None:
        """Whatever the policy: what cannot be held, none holds."""
        notes = {note.key: note for note in found}
        for key, job in self._known.items():
            note = notes.get(key)
            reason = note.reason if note else ""
            if job.priority == "high" and reason != job.infeasible:
                self._table.publish_feasibility(key.row, key.generation, reason, note.needed_ns if note else 0)
                if note:
                    log.warning("infeasible: %s", infeasible_in_words(note))
                else:
                    log.info("feasible again: %s", job.name)

    def _publish(self, key: JobKey, plan: Plan) -> None:
        pace = plan.pace or Pace(0, 0, 0)
        self._table.publish_plan(
            key.row,
            key.generation,
            plan.lead_ns,
            plan.queue_limit,
            margin_ns=pace.margin_ns,
            inflation_ppm=pace.inflation_ppm,
            quantile_ppm=pace.quantile_ppm,
            slice_ns=plan.slice_ns,
        )

    def _limit(self, key: JobKey, plan: TrainerPlan) -> None:
        self._table.publish_trainer_plan(
            key.row, key.generation, sm_count=plan.sm_count, rate_ppm=plan.rate_ppm, ahead_ns=plan.ahead_ns
        )

    def _tell_of_idle_share(self, key: JobKey, job: JobView, sm_count: int) -> None:
        self._warn_once(
            key,
            f"share: {job.name} is kept to {sm_count} of {job.sm_total} SMs but runs without MPS, where processes take "
            "turns on the whole GPU: nobody gets the SMs kept free; set mps.enabled = true and start all jobs by "
            "`herald run`",
        )

    def _tell_unmet(self, decision: Decision) -> None:
        for key, words in decision.unmet.items():
            self._warn_once(key, f"policy: {words}")

    def _tell_overdue(self) -> None:
        for key, job in self._known.items():
            if job.requests_overdue:
                max_hold = format_ns(self._table.header.max_hold_ns)
                self._warn_once(
                    key,
                    f"overdue: requests of {job.name} run longer than limits.max_hold, {max_hold}: from then on "
                    "training runs beside them; raise it if they are to be protected to their end",
                )

    def _warn_once(self, key: JobKey, words: str) -> None:
        said = self._warned.setdefault(key, set())
        if words not in said:
            said.add(words)
            log.warning("%s", words)

    def _log_modes(self, decision: Decision, memory: Memory) -> None:
        for device, mode in decision.modes.items():
            if mode != self._modes.get(device):
                log.info("mode: %s is %s", device, mode)
                for (where, known), evidence in sorted(memory.evidence.items()):
                    if where == device and not known.closed:
                        log.info("learnt: %s %s: %s", device, known, evidence.in_words())
        self._modes = dict(decision.modes)

    def _log_membership(self, jobs: dict[JobKey, JobView], freed: list[int]) -> None:
        for key, job in self._known.items():
            if key in jobs:
                continue
            if key.row in freed:
                log.warning("reaped: %s, its process (pid %d) died", job.name, job.pid)
            else:
                log.info("left: %s%s (pid %d)", job.name, _done_in_words(job), job.pid)
        for key, job in jobs.items():
            if key not in self._known:
                slo = f", SLO {format_ns(job.slo_ns)}" if job.slo_ns else ""
                log.info("joined: %s (%s, %s%s, pid %d)", job.name, job.priority, job.device, slo, job.pid)


def _done_in_words(job: JobView) -> str:
    if job.priority == "high":
        return f" after at least {job.requests_done} requests"  # as of the last tick
    if job.train_steps:
        return f" after {job.train_steps} steps"
    predicted_ns = job.gated_ns + job.light_ns  # steps are counted only where SM shares are possible
    return f" after {format_ns(predicted_ns)} of predicted device time" if predicted_ns else ""


def infeasible_in_words(note: Infeasible) -> str:
    """Which SLO cannot be held, why, and what would be."""
    why = {
        "alone": "it takes longer even alone",
        "load": "too many are late behind a closed gate, too; it could be held at a lower load, or on a faster host",
        "residual": "what runs on after the gate closes takes the rest",
    }[note.reason]
    could = "" if note.reason == "load" else f"; one of {format_ns(note.needed_ns)} could be held"
    return f"{note.name} has an SLO of {format_ns(note.slo_ns)}{OF_PART[note.part]}, but {why}{could}"


def describe(plan: Plan) -> str:
    """A plan in words."""
    if plan.slice_ns:
        return f"closes and opens the gate in turns of {format_ns(plan.slice_ns)} while a request is open"
    if plan.lead_ns >= LEAD_ALWAYS:
        return "closes the gate when a request begins"
    queue = "" if plan.queue_limit >= NO_QUEUE_LIMIT else f", or with more than {plan.queue_limit} open"
    if plan.lead_ns <= LEAD_NEVER:
        return f"never closes the gate{queue}"
    pace = f" (down to {format_ns(plan.pace.margin_ns)} as it gets on)" if plan.pace else ""
    return f"closes the gate {format_ns(plan.lead_ns)} before the deadline{pace}{queue}"


def _kind(plan: Plan) -> tuple[bool, bool, int, int]:
    """What of a plan people want to hear of: leads follow every prediction."""
    return plan.lead_ns >= LEAD_ALWAYS, plan.lead_ns <= LEAD_NEVER, plan.queue_limit, plan.slice_ns


def serve(daemon: Daemon, stop: StopSignals, clock: Callable[[], int] = now_ns) -> None:
    """Tick until asked to stop."""
    while True:
        began_ns = clock()
        daemon.tick(began_ns)
        if stop.wait(rest_s(clock() - began_ns)):
            return


def rest_s(tick_ns: int) -> float:
    """How long to rest after a tick that took ``tick_ns``: a full table ticks less often rather than cost a core."""
    return min(max(PERIOD_S, tick_ns / 1e9 / MAX_CPU_SHARE), LONGEST_PERIOD_S)


def run(config: Config) -> None:
    """Own the domain until SIGTERM, SIGINT or SIGHUP, then leave it as if there had been no daemon.

    Raises ConfigError, TableError (a domain that was reset, too), DaemonError (another daemon, no MPS); what was taken
    is given back.
    """
    policy = policies.load(config.policy, setting=f"config {config.source}: policy" if config.source else "policy")
    domain = choose_domain(None, config)
    with ExitStack() as undo:
        stop = undo.enter_context(stop_signals())
        table = Table.open(domain)
        table.claim_daemon(now_ns())
        undo.callback(_remove_if_empty, table)
        undo.callback(table.release_daemon)
        mps_pipe = _start_mps(domain, table, undo) if config.mps.enabled else ""
        undo.callback(table.publish_policy, "")
        publish_limits(table, config.limits)
        table.publish_policy(config.policy, mps_pipe)
        daemon = Daemon(table, policy, undo.enter_context(_metrics(table, config.metrics)), config.limits)
        undo.callback(daemon.withdraw)
        log.info("running: domain %s, policy %s, pid %d", domain, config.policy, os.getpid())
        _tell_of_jobs(config)
        serve(daemon, stop)
        log.info("stopping: domain %s", domain)


def _tell_of_jobs(config: Config) -> None:
    """The daemon has the file, but what it says of jobs is not the daemon's."""
    if config.jobs:
        file = Path(config.source).absolute() if config.source else "FILE"
        log.info("[jobs] are read by the jobs themselves: give them the same file with HERALD_CONFIG=%s", file)


def publish_limits(table: Table, limits: Limits) -> None:
    """Write the limits: after a hold of ``max_hold`` the gate stays open for as long as gives ``floor``."""
    breather_ns = round(limits.max_hold_ns * limits.floor / (1 - limits.floor))
    table.publish_limits(max_hold_ns=limits.max_hold_ns, breather_ns=breather_ns, quantum_ns=limits.quantum_ns)


@contextmanager
def _metrics(table: Table, metrics: MetricsConfig) -> Iterator[Callable[[], None]]:
    """Serve metrics where the config says so. Yields what is to be called at every tick."""
    if metrics.listen is None:
        yield lambda: None
        return
    from herald.scheduler import exporter

    collector = exporter.TableCollector(table)
    host, port = metrics.listen
    with exporter.served(collector, host, port):
        log.info("metrics: http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
        yield collector.observe


def _start_mps(domain: str, table: Table, undo: ExitStack) -> str:
    server = MpsServer(domain)

    def leave() -> None:
        # Where MPS goes on for its clients, new jobs must find it, too: half a domain in MPS takes turns
        # with the other half.
        if not has_successor(table) and not server.stop():
            table.publish_policy("", str(server.pipe_dir))

    server.start()
    undo.callback(leave)
    return str(server.pipe_dir)


def has_successor(table: Table) -> bool:
    """Whether the domain was reset and has a daemon again, whose is now what goes by the domain's name: MPS."""
    if table.is_current():
        return False
    try:
        return Table.open(table.domain, create=False).daemon_is_alive()
    except TableError:
        return False


def _remove_if_empty(table: Table) -> None:
    if not table.is_current():
        return
    try:
        Table.unlink(table.domain)
    except TableError:
        log.info("left: domain %s is in use and goes on, under the strict policy", table.domain)


def add_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`herald daemon`."""
    parser = subparsers.add_parser("daemon", help="own a domain: policy, limits, MPS")
    parser.add_argument("--config", type=Path, help="TOML file (default: HERALD_CONFIG, else built-in defaults)")
    parser.add_argument("--domain", help="instead of the file's")
    parser.add_argument("--policy", help=f"instead of the file's: {', '.join(policies.names())}")
    parser.set_defaults(run=_main)


def _main(arguments: argparse.Namespace) -> int:
    config = find(arguments.config)
    if arguments.policy:
        policies.load(arguments.policy, setting="--policy")
        config = replace(config, policy=arguments.policy)
    run(replace(config, domain=choose_domain(arguments.domain, config)))
    return 0
