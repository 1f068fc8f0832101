"""One simulated trainer: whether its ops run, what it has done, and its row of the table."""

from dataclasses import replace
from random import Random

from herald.layout import JobRow
from herald.scheduler.simulator.closing import NEVER_NS
from herald.scheduler.simulator.jobs import TrainerModel
from herald.scheduler.simulator.rates import Running

_STEP_DONE_NS = 0.5  # less than that left is a rounding error


class Training:
    """The state of a trainer. Whoever owns the gate says when it closes and opens. Times are ns."""

    def __init__(self, model: TrainerModel, row_view: JobRow, seed: str) -> None:
        self.model = model
        self._view = row_view
        self._random = Random(seed)
        self.work_ns = 0.0  # device time done
        self.stops_ns = NEVER_NS  # when what passed before a close is done
        self._wanted_sms = 0  # from its next step on
        self.switches = False  # its next step runs on other SMs
        self.running = Running(model)  # what runs while it runs

    def runs(self, now_ns: int) -> bool:
        """Whether its ops run: the gate is open, or what was let through is not done."""
        return now_ns < self.stops_ns

    def gate_closed(self, now_ns: int) -> None:
        """From when on nothing more passes."""
        self.stops_ns = now_ns + round(self._random.uniform(0, self.model.longest_stretch_ns))

    def gate_opened(self) -> None:
        """From when on all passes."""
        self.stops_ns = NEVER_NS

    @property
    def step_left_ns(self) -> float:
        """Device time to the end of its step."""
        return self.model.step_ns - self.work_ns % self.model.step_ns

    def advance(self, by_ns: int, rate: float) -> None:
        """Time in which it ran at a rate (device time per time)."""
        if not self.switches:
            self.work_ns += by_ns * rate
            return
        left_ns = self.step_left_ns
        self.work_ns += by_ns * rate
        if by_ns * rate >= left_ns - _STEP_DONE_NS:
            self.switches = False
            self.running = replace(self.running, sm_count=self._wanted_sms)
            self._view.sm_granted = self._wanted_sms
            self._view.sm_switches += 1

    def take_plan(self) -> None:
        """Read the limits in force. A rate holds at once, a share of SMs from the next step on."""
        row = self._view
        self._wanted_sms = row.sm_count if row.sm_count < self.model.sm_total else 0
        self.switches = self._wanted_sms != self.running.sm_count
        if row.rate_ppm != self.running.rate_ppm:
            self.running = replace(self.running, rate_ppm=row.rate_ppm)

    def publish(self, now_ns: int) -> None:
        """Bring the row up to date."""
        row = self._view
        row.heartbeat_ns = now_ns
        row.gated_ns = int(self.work_ns)
        row.train_steps = int(self.work_ns // self.model.step_ns)
