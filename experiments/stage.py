"""The processes, daemons and MPS of one pair in one MPS state, alive from run to run.

A daemon per setting: what it has learnt of the pair stays from one SLO to the next, since the jobs come back under the
same names. Knows nothing of plans and rows.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from herald.experiments.crew import Crew, Pair
from herald.experiments.domain import PrivateDomain, private_mps
from herald.experiments.process import Channel, Launch, WorkerError
from herald.experiments.settings import Setting
from herald.experiments.trial import Terms, Trial, run_trial
from herald.scheduler.mps import MpsServer

Start = Callable[[Launch], Channel]


class Stage:
    """A context manager: leaving it ends the processes, then the daemons, then MPS."""

    def __init__(self, pair: Pair, *, device: str, seed: int, mps: bool, start: Start, log_dir: Path) -> None:
        self.pair = pair
        self._device = device
        self._seed = seed
        self._mps = mps
        self._start = start
        self._log_dir = log_dir
        self._server: MpsServer | None = None
        self._learnt: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._server = stack.enter_context(private_mps("colocation")) if self._mps else None
            pipe = str(self._server.pipe_dir) if self._server else None
            self._domains = stack.enter_context(Domains(self._log_dir))
            self.crew = stack.enter_context(Crew(self.pair, self._device, self._seed, self._start, pipe))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def prepare(self, settings: Iterable[Setting]) -> None:
        """Start all processes of these settings at the same time. Raises WorkerError."""
        self.crew.prepare(settings)

    def has_learnt(self, setting: Setting) -> bool:
        """Whether the daemon of ``setting`` has seen this pair, or has nothing to learn."""
        return not setting.uses_slo or setting.name in self._learnt

    def domain_of(self, setting: Setting) -> str | None:
        """Where the jobs of ``setting`` meet; its daemon is started when first needed. Raises DaemonFailed."""
        return self._domains.of(setting)

    def run(self, setting: Setting, terms: Terms) -> Trial:
        """One trial. Raises WorkerError, after which the next one starts fresh processes."""
        try:
            trial = run_trial(self.crew, setting, terms)
            if self._server:
                check_clients(self._server, self.crew.size)
        except WorkerError:
            self.crew.close()
            raise
        self._learnt.add(setting.name)
        return trial


class Domains:
    """One private domain with a daemon per setting, started when first needed; all end with this context manager."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._domains: dict[str, PrivateDomain] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def of(self, setting: Setting) -> str | None:
        """The domain in which ``setting`` runs; None where Herald takes no part."""
        if setting.policy is None:
            return None
        if setting.name not in self._domains:
            domain = self._stack.enter_context(PrivateDomain(f"exp-{setting.name}", self._log_dir))
            domain.start_daemon(setting.policy)
            self._domains[setting.name] = domain
        return self._domains[setting.name].name


def check_clients(server: MpsServer, num_processes: int) -> None:
    """A process that is not in MPS takes turns with the others: its rows would be of another setting."""
    clients = server.clients()
    if len(clients) < num_processes:
        raise WorkerError(f"{num_processes} processes were started under MPS, but it has {len(clients)} clients")
