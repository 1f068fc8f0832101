"""`herald experiment numerics`: whether time gating changes what training computes. It must not, in any bit.

A trainer runs the same steps from the same seed twice without Herald, which shows that the workload itself repeats,
and once as a low-priority job while this process, as a service, opens and closes requests all the time. Then one more
step has to wait for as long as a request is open: an equal result without any gating would say nothing.
"""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import herald
from herald.errors import ConfigError
from herald.experiments import settings, workloads
from herald.experiments.crew import LOAD_TIMEOUT_S, launch_for
from herald.experiments.domain import PrivateDomain
from herald.experiments.measurement import Kind
from herald.experiments.process import Channel, Launch, NoAnswer, Worker
from herald.experiments.rows import Row

DEFAULT = {"cpu": ("cpu-vgg", "cpu-rnnlm"), "cuda": ("vgg16", "rnnlm", "vgg16-graph")}
LONGEST_HOLD_S = 0.004
HELD_S = 0.5  # a step that takes longer than this behind an open request is held by it
STEPS_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Losses:
    """Two runs of the same steps."""

    plain: Sequence[str]  # exact, as hexadecimal numbers
    gated: Sequence[str]

    @property
    def num_equal(self) -> int:
        """Steps with the same loss to the last bit."""
        return sum(ours == reference for ours, reference in zip(self.gated, self.plain, strict=True))

    @property
    def identical(self) -> bool:
        """Whether that is all of them."""
        return self.num_equal == len(self.plain)


def run(device: str, *, names: Sequence[str] | None, steps: int, seed: int, log_dir: Path) -> Iterator[Row]:
    """A row per workload."""
    if steps < 1:
        raise ConfigError(f"--steps = {steps}: give 1 or more training steps")
    for name in names or DEFAULT[device]:
        with PrivateDomain("numerics", log_dir) as domain, Worker(deterministic_launch(device), log_dir) as trainer:
            yield measured(trainer, workloads.get(name).name, device, steps=steps, seed=seed, domain=domain.name)


def measured(trainer: Channel, workload: str, device: str, *, steps: int, seed: int, domain: str) -> Row:
    """Compare one workload with itself."""
    program = {"workload": workload, "device": device, "seed": seed}
    facts, plain = _losses(trainer, program, steps)
    repeated = Losses(plain, _losses(trainer, program, steps)[1])
    # Attached before it is loaded: a CUDA graph has the waits in it that were enqueued while it was captured.
    trainer.call("attach", timeout_s=STEPS_TIMEOUT_S, domain=domain, priority="low", slo=None, device=device, settle=0)
    with herald.attach(priority="high", slo="50ms", name="gater", domain=domain, device=device) as service:
        with busy(service, seed):
            losses = Losses(plain, _losses(trainer, program, steps)[1])
        closes = service.stats().closes
        held = _is_held(trainer, service)
    stats = trainer.call("detach", timeout_s=STEPS_TIMEOUT_S)
    return {
        "workload": workload,
        "device": device,
        "seed": seed,
        "steps": steps,
        "equal": losses.num_equal,
        "repeatable": repeated.identical,
        "closes": closes,
        "gate_points": stats["gate_points"],
        "gate_waits": stats["gate_waits"],
        "held": held,
        "identical": losses.identical and repeated.identical,
        "gated": held and closes > 0 and stats["gate_points"] > 0,
        "first_loss": float.fromhex(plain[0]),
        "last_loss": float.fromhex(plain[-1]),
        "herald": stats,
        "workers": {"training": facts},
    }


def deterministic_launch(device: str) -> Launch:
    """A trainer's process, not lowered, in which cuBLAS repeats itself."""
    launch = launch_for("training", settings.get("train-alone"), device, None)
    return replace(launch, env=(*launch.env, ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")))


@contextmanager
def busy(service: herald.Job, seed: int) -> Iterator[None]:
    """Meanwhile a thread opens a request, holds it for a moment and ends it, again and again."""
    stop = threading.Event()
    thread = threading.Thread(target=_toggle, args=(service, random.Random(seed), stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _toggle(service: herald.Job, moments: random.Random, stop: threading.Event) -> None:
    while not stop.is_set():
        with service.request():
            stop.wait(moments.uniform(0, LONGEST_HOLD_S))
        stop.wait(moments.uniform(0, LONGEST_HOLD_S))


def _losses(trainer: Channel, program: dict[str, object], steps: int) -> tuple[dict[str, Any], list[str]]:
    """Facts about the process, and the losses of the program from its beginning."""
    facts = trainer.call("load", timeout_s=LOAD_TIMEOUT_S, warmup=0, deterministic=True, **program)
    losses: list[str] = trainer.call("steps", timeout_s=STEPS_TIMEOUT_S, count=steps, losses=True)["losses"]
    return facts, losses


def _is_held(trainer: Channel, service: herald.Job) -> bool:
    """Whether a step waits for an open request."""
    with service.request():
        trainer.send("steps", count=1)
        try:
            trainer.receive(HELD_S)
        except NoAnswer:
            held = True
        else:
            return False
    trainer.receive(STEPS_TIMEOUT_S)
    return held


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    yield (
        row["workload"],
        f"{row['equal']} of {row['steps']}",
        "yes" if row["repeatable"] else "no",
        str(row["closes"]),
        str(row["gate_points"]),
        str(row["gate_waits"]) if row["device"] == "cpu" else "on the GPU",
        "yes" if row["held"] else "no",
    )


KIND = Kind("numerics", ("workload", "equal losses", "repeats", "closes", "gate points", "waits", "held"), _lines)
