"""The control law that corrects the policy's model by what came of it: pure arithmetic, one number per service.

The *leeway* of a service, in whole rungs of the ladder `queueing.LIMITS`, takes so many off the number of requests that
may be open before the gate closes, as the model has it. Success adds no rung, since rungs may lie far apart where the
load is high: at MOST the model may let twice as many requests be late. The leeway is itself moved by a weighted up-down
staircase (Kaernbach 1991):

    a request that missed its SLO and would have met it alone:   leeway -= DOWN
    a request that met its SLO:                                  leeway += DOWN x b / (1 - b),   b = (1 - target) / 2

The two balance where a share b of requests misses on training's account: half of what the target allows. The step down
is two hundred times the step up (at a target of 99 %), so there is nothing to oscillate: after a disturbance a handful
of misses reaches the strict plan, and the way back takes hundreds of requests.
"""

DOWN = 1.0  # rungs, per miss
MOST = 1.0  # from here on the model is taken to be too careful
LEAST = -10.0  # from any rung to the lowest


def step(leeway: float, *, met: int, missed: int, target: float) -> float:
    """The leeway after ``met`` requests that met their SLO and ``missed`` ones that training made miss it."""
    budget = (1 - target) / 2
    moved = leeway + DOWN * (met * budget / (1 - budget) - missed)
    return min(MOST, max(LEAST, moved))
