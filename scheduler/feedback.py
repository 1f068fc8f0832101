"""The control law that corrects the policy's model by what came of it: pure arithmetic, one number per service.

The *leeway* of a service, in whole rungs of the ladder `queueing.LIMITS`, takes so many off the number of requests that
may be open before the gate closes, as the model has it. Success adds no rung, since rungs may lie far apart where the
load is high: at MOST the model may let twice as many requests be late. The leeway is itself moved by a weighted up-down
staircase (Kaernbach 1991):

    a request that missed its SLO and would have met it alone:   leeway -= DOWN
    a request that met its SLO:                                  leeway += DOWN x b / (1 - b),   b = `budget`

The two balance where a share b of requests misses on training's account: half of what the target allows, or what those
leave of it that would have missed alone, too. The step down is two hundred times the step up (at a target of 99 %), so
there is nothing to oscillate: after a disturbance a handful of misses reaches the strict plan, and the way back takes
hundreds of requests.
"""

DOWN = 1.0  # rungs, per miss
MOST = 1.0  # from here on the model is taken to be too careful
LEAST = -10.0  # from any rung to the lowest
MOST_SHARE, LEAST_SHARE = 0.5, 0.2  # of what the target allows, for training
SAFETY = 0.85  # of what the target allows, for all


def budget(target: float, anyway: float) -> float:
    """The share of requests that may miss on training's account, where a share ``anyway`` misses alone, too."""
    allowed = 1 - target
    return min(MOST_SHARE * allowed, max(LEAST_SHARE * allowed, SAFETY * allowed - anyway))


def step(leeway: float, *, met: int, missed: int, target: float, anyway: float = 0.0) -> float:
    """The leeway after ``met`` requests that met their SLO and ``missed`` ones that training made miss it."""
    share = budget(target, anyway)
    moved = leeway + DOWN * (met * share / (1 - share) - missed)
    return min(MOST, max(LEAST, moved))
