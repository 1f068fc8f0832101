"""`herald.profile`: runs a step function through the passes of the profiler and makes a profile of what they saw.

The passes are in `herald.hooks.profiling`; this checks what a person says, runs them, and leaves nothing behind.
Loading it loads no torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from herald.durations import parse_duration
from herald.errors import ConfigError, HeraldError, ProfileError
from herald.hooks import devices, learned
from herald.profiles import Profile

if TYPE_CHECKING:
    import torch

    from herald.hooks.profiling.passes import Measurement
    from herald.hooks.profiling.time_limit import TimeLimit

_MOST_ITERATIONS = 10_000


def profile(
    step: Callable[[], object],
    *,
    warmup: int = 3,
    iterations: int = 10,
    limit: str = "120s",
    device: "str | torch.device | None" = None,
    model: "torch.nn.Module | None" = None,
    workload: str = "",
) -> Profile:
    """Profile the ops of ``step``, which runs one training iteration or one request each time that it is called.

    Runs it ``warmup`` times, then about three times ``iterations`` times: timed without recording, with the op
    recorder, in detail and, on CUDA, under torch's profiler for the kernels. Runs alone: what shares the device is in
    the times. ``device``: default the model's, else the current GPU, else the CPU. ``model``: names its modules and
    enters the fingerprint; without it modules are found as they run. ``workload``: a name, for people.

    ``limit``: how long all this may take. In the main thread a step that takes longer is interrupted by SIGALRM; one
    that is blocked in a call into C (a kernel that never ends, a collective) is interrupted when that returns, if ever:
    `herald profile` runs in a process of its own, which it ends. In other threads the limit counts between steps.

    Raises ConfigError (a wrong setting) and ProfileError: the step cannot be called, raises, runs no op on the device,
    or takes longer than the limit. Then the recorder is off and torch's hooks are gone.
    """
    limit_ns = parse_duration(limit, setting="limit")
    check_counts(warmup, iterations)
    if not callable(step):
        raise ProfileError(
            f"step = {step!r} cannot be called: give a function that runs one iteration, as in herald.profile(step)"
        )
    devices.check_model(model)
    from herald.hooks.profiling.time_limit import TimeLimit

    return profile_within(
        TimeLimit(limit_ns), step, warmup=warmup, iterations=iterations, device=device, model=model, workload=workload
    )


def profile_within(
    limit: "TimeLimit",
    step: Callable[[], object],
    *,
    warmup: int,
    iterations: int,
    device: "str | torch.device | None",
    model: "torch.nn.Module | None",
    workload: str,
) -> Profile:
    """`profile`, within a limit that began earlier."""
    from herald.hooks.profiling.passes import Measurement, place_of

    where = devices.resolve(device, model)
    measurement = Measurement(where.cuda_index, warmup=warmup, iterations=iterations, model=model)
    with limit.enforced():
        _run(step, measurement, limit)
        return measurement.profile(place_of(where.cuda_index, learned.device_description(where.cuda_index), workload))


def check_counts(warmup: int, iterations: int) -> None:
    """Raises ConfigError."""
    for setting, value, least in (("warmup", warmup, 0), ("iterations", iterations, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST_ITERATIONS:
            raise ConfigError(f"{setting} = {value!r}: give a whole number in {least} .. {_MOST_ITERATIONS}")


def _run(step: Callable[[], object], measurement: "Measurement", limit: "TimeLimit") -> None:
    with measurement.schedule as schedule:
        schedule.begin()
        while not schedule.done:
            with _told_where(schedule.num_done):
                step()
            schedule.border()
            limit.check()


@contextmanager
def _told_where(num_done: int) -> Iterator[None]:
    try:
        yield
    except HeraldError:
        raise
    except Exception as e:
        raise ProfileError(f"the step function raised {type(e).__name__} in iteration {num_done + 1}: {e}") from e
