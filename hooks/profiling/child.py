"""The process that `herald profile` starts: `python -m herald.hooks.profiling.child ORDER [TARGET...]`.

Runs the step function that a file makes, or a whole program whose optimizer tells where an iteration ends, and writes
the profile. How it talks with its parent is written in `herald.profile_process`.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from herald.bootstrap import run_target
from herald.errors import ConfigError, HeraldError, ProfileError
from herald.hooks import disabled
from herald.hooks.profiler import check_counts, profile_within
from herald.hooks.profiling import telling
from herald.hooks.profiling.program import ProgramProfiler
from herald.hooks.profiling.time_limit import TimeLimit
from herald.profile_process import Order
from herald.profiles import Profile


def main(order: Order, target: Sequence[str]) -> None:
    """Profile as ordered. Raises SystemExit where that fails, with the error on stderr."""
    try:
        check_counts(order.warmup, order.iterations)
        telling.tell(order, "started")
        if order.function is not None:
            telling.write(order, _profile_function(order, order.function))
            return
    except HeraldError as error:
        telling.fail(order, error)
    with ProgramProfiler(order):
        run_target(target)


def _profile_function(order: Order, function: str) -> Profile:
    limit = TimeLimit(order.limit_ns)
    with limit.enforced():
        step, model = _made(_load(function), function)
    return profile_within(
        limit,
        step,
        warmup=order.warmup,
        iterations=order.iterations,
        device=order.device,
        model=model,
        workload=order.workload,
    )


def _load(function: str) -> Callable[[], object]:
    """The function of "FILE.py:FUNCTION". Raises ConfigError or ProfileError."""
    path, _, name = function.rpartition(":")
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.argv = [path]  # a script may read its arguments while it is loaded: it has none
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{function!r}: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ProfileError(f"{path} raised {type(e).__name__} when it was loaded: {e}") from e
    make: Callable[[], object] | None = getattr(module, name, None)
    if not callable(make):
        raise ConfigError(f"{function!r}: {path} has no function {name!r}")
    return make


def _made(make: Callable[[], object], function: str) -> tuple[Callable[[], object], torch.nn.Module | None]:
    try:
        made: Any = make()
    except Exception as e:
        raise ProfileError(f"{function} raised {type(e).__name__}: {e}") from e
    step, model = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not callable(step) or not (model is None or isinstance(model, torch.nn.Module)):
        raise ProfileError(
            f"{function} returned {made!r}: it must return a step function, or a pair of it and the model"
        )
    return step, model


if __name__ == "__main__":
    disabled.profiling = True
    main(Order.of_word(sys.argv[1]), sys.argv[2:])
