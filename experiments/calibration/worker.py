"""One process of the calibration: the one that disturbs, or the one that is disturbed. Speaks as
`herald.experiments.worker` does and, like it, decides nothing.
"""

import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from herald.experiments.worker import Commands, main

_NUM_PROFILED_CALLS = 3


class Session:
    """The commands, one method each; the state between them is what the process holds alive."""

    def load(self, device: str, seed: int) -> dict[str, object]:
        """Open the device; facts about it and this process."""
        import torch

        from herald.experiments.calibration import sweep

        torch.manual_seed(seed)
        self.seed = seed
        self.device = torch.device(device)
        self.loop: Any = None  # replay.Loop, between start and stop
        self.work: Any = None  # replay.Repeated, from prepare on
        self.probes: dict[str, Any] = {}
        self.operations: dict[str, Callable[[], Any]] = dict(sweep.operations(self.device))
        return {"python": platform.python_version(), "torch": torch.__version__, **self._gpu()}

    def known(self) -> dict[str, object]:
        """The labels of all operations that can be prepared."""
        return {"labels": list(self.operations)}

    def check(self) -> dict[str, object]:
        """Fails where the device can no longer be used: an error in a kernel stays with its process."""
        from herald.experiments.completion import mark

        mark(self.device)()
        return {}

    def catch(self, workload: str, most: int, labels: list[str] | None = None) -> dict[str, object]:
        """Catch ops of a workload: ``labels`` where given, else at most ``most`` by `capture.choose`."""
        from herald.experiments import workloads
        from herald.experiments.calibration import capture

        program = workloads.get(workload).make(self.device, self.seed)
        for _ in range(2):  # lazy work of libraries and optimizers is done afterwards
            program.step()
        caught = capture.ops_of(workload, program.step, self.device, most, labels)
        for label, operation in caught.items():
            self.operations[label] = lambda operation=operation: operation  # type: ignore[misc]  # mypy: default
        return {"labels": list(caught)}

    def facts(self, label: str) -> dict[str, object]:
        """What the operation costs by its shapes, and its kernels by the profiler."""
        import torch

        from herald.experiments.calibration import operations
        from herald.hooks import kernel_facts

        operation = self.operations[label]()
        with torch.inference_mode():  # caught ops may be in place on parameters
            cost = operations.cost(operation.call)
            kernels = kernel_facts.measure(operation.call, _NUM_PROFILED_CALLS)
        # An operation is called once per iteration, while a kernel's calls count per call of the op that launches it.
        return {**asdict(cost), "kernels": [asdict(kernel) for found in kernels.values() for kernel in found]}

    def prepare(self, label: str) -> dict[str, object]:
        """Make the operation ready to be looped; its time alone. The one before is forgotten."""
        from herald.experiments.calibration.replay import Repeated

        self.work = None
        work = Repeated(self.operations[label]().call, self.device)
        work.warm_up()
        work.fit()
        self.work = work
        return {"call_ns": round(work.call_ns()), "calls_per_batch": work.batch.num_calls}

    def start(self) -> dict[str, object]:
        """Loop the prepared operation; answers once it runs."""
        from herald.experiments.calibration.replay import Loop

        self.loop = Loop(self.work)
        self.loop.start()
        return {}

    def stop(self) -> dict[str, object]:
        """End the loop; the mean time of a call in it."""
        loop, self.loop = self.loop, None
        return {"call_ns": round(loop.stop())}

    def probe(self, kind: str, seconds: float) -> dict[str, object]:
        """Send requests of a kind for some time; a summary of their latencies."""
        from herald.experiments.calibration.probes import Probe

        if kind not in self.probes:
            self.probes[kind] = Probe(kind, self.device)
        return dict(self.probes[kind].measure(seconds))

    def _gpu(self) -> dict[str, object]:
        import torch

        from herald.experiments.calibration import limits

        if self.device.type != "cuda":
            return {"gpu": None, "num_sms": None, "capability": None, "limits": None}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "gpu": properties.name,
            "num_sms": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "limits": limits.of_properties(properties),
        }


COMMANDS: Commands = {
    method.__name__: method
    for method in (
        Session.load,
        Session.known,
        Session.check,
        Session.catch,
        Session.facts,
        Session.prepare,
        Session.start,
        Session.stop,
        Session.probe,
    )
}

if __name__ == "__main__":
    main(Session(), COMMANDS)
