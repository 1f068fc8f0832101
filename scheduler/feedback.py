"""The control law that corrects the policy's model by what came of it: pure arithmetic, one number per service.

The *leeway* of a service is added to the number of requests that may be open before the gate closes, as the model
computes it. It is moved by a weighted up-down staircase (Kaernbach 1991):

    a request that missed its SLO and would have met it alone:   leeway -= DOWN
    a request that met its SLO:                                  leeway += DOWN x b / (1 - b),   b = (1 - target) / 2

The two balance where a share b of requests misses on training's account: half of what the target allows. The step down
is two hundred times the step up (at a target of 99 %), so there is nothing to oscillate: after a disturbance a handful
of misses reaches the strict plan, and the way back takes hundreds of requests.
"""

DOWN = 0.5  # requests, per miss: two misses in a row take one request off the queue
MOST = 1.0  # what success alone may add to the model
LEAST = -8.0  # no queue that the model allows is longer by much


def step(leeway: float, *, met: int, missed: int, target: float) -> float:
    """The leeway after ``met`` requests that met their SLO and ``missed`` ones that training made miss it."""
    budget = (1 - target) / 2
    moved = leeway + DOWN * (met * budget / (1 - budget) - missed)
    return min(MOST, max(LEAST, moved))
