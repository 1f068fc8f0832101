"""When each op of an iteration will run: the host issues, the device runs in order.

Two resources. The host issues each op at its recorded offset; the device starts it then, or when the op before it has
ended, whichever is later. So launch-bound code (the device waits for the host), code bound by the device (the host is
far ahead) and everything between are predicted alike, and a remaining time at every op with them. One device, ops in
issue order: work that overlaps on several streams is predicted as if it did not.
"""

from dataclasses import dataclass

from herald.errors import GraphError
from herald.profiles import Iteration, OpInstance, OpProfile, Profile


@dataclass(frozen=True)
class Prediction:
    """One iteration as predicted. The tuples have a place per instance of the profile's iteration, in its order."""

    device_sum_ns: int  # the sum over ops
    timeline_ns: int  # from the iteration's begin until host and device are done
    busy_ns: int  # of it, what the device spends in ops; the rest it waits for the host
    start_ns: tuple[int, ...]  # on the device
    end_ns: tuple[int, ...]
    issue_ns: tuple[int, ...]  # on the host

    @property
    def device_end_ns(self) -> int:
        """When the last op ends."""
        return self.end_ns[-1]

    def remaining_ns(self, instance: int) -> int:
        """From the end of an instance to the end of the last one."""
        return self.device_end_ns - self.end_ns[instance]


def predict(profile: Profile) -> Prediction:
    """Replay a profile's iteration. Raises GraphError when the profile has none."""
    iteration = iteration_of(profile)
    scale = _host_scale(iteration)
    start_ns, end_ns, issue_ns = [], [], []
    busy_ns = free_ns = 0
    for instance in iteration.instances:
        issued_ns = round(instance.begin_ns * scale)
        duration_ns = device_ns(profile.ops[instance.op], instance)
        begun_ns = max(issued_ns, free_ns) if duration_ns else free_ns  # what enqueues nothing waits for nothing
        free_ns = begun_ns + duration_ns
        busy_ns += duration_ns
        issue_ns.append(issued_ns)
        start_ns.append(begun_ns)
        end_ns.append(free_ns)
    return Prediction(
        device_sum_ns=sum(instance.self_ns for instance in iteration.instances),
        timeline_ns=max(free_ns, iteration.host_ns),
        busy_ns=busy_ns,
        start_ns=tuple(start_ns),
        end_ns=tuple(end_ns),
        issue_ns=tuple(issue_ns),
    )


def iteration_of(profile: Profile) -> Iteration:
    """The iteration of a profile. Raises GraphError when it has none, or an empty one."""
    if profile.iteration is None:
        raise GraphError(
            "the profile has times of ops but no iteration (`Job.save_profile` writes such): "
            "record one with `herald profile`"
        )
    if not profile.iteration.instances:
        raise GraphError("the profile's iteration has no ops: profile a step function that runs some on its device")
    return profile.iteration


def device_ns(op: OpProfile, instance: OpInstance) -> int:
    """The time that an instance keeps the device: without the gaps of a slow host, where its kernels are known."""
    return min(instance.self_ns, op.self_ns) if op.kernels else instance.self_ns


def _host_scale(iteration: Iteration) -> float:
    """Recording slows the host; the same iteration was also timed without. At most 1."""
    recorded_ns = max(instance.begin_ns + instance.host_ns for instance in iteration.instances)
    if not iteration.host_ns or recorded_ns <= iteration.host_ns:
        return 1.0
    return iteration.host_ns / recorded_ns
