"""Whether to run a pair of jobs under MPS: a pure rule, for whoever starts them (the choice cannot change later).

MPS lets requests and training run side by side, which is worth what slack there is. But it slows some services down
even alone (CUDA graphs of many small kernels: 1.08 to 1.10 x on an H200), and that is lost at once. So the queue is
played through, as the controller does: without MPS with a gate that closes at once, since there contexts take turns
anyway; under MPS as far as the SLO lets requests run beside training, at a guess of what they do to each other. There
even a trainer that waits slows requests down, which an SLO hardly above the p99 alone does not leave room for.
"""

from herald.scheduler import queueing
from herald.scheduler.queueing import on_grid

GUESSED_INFLATION = 2.0
# Of service times beside trainers that wait, beyond what MPS does to a service that is alone: on an H200 the p99 of
# `strict` is 1.02 (one kernel fills the GPU) to 1.18 x (graphs of small ones) that without MPS.
WAITING = 1.04
TIE = 0.99  # what is lost for sure against what is guessed


def mps_pays(*, slo: float, slowdown: float, load: float, target: float = 0.99) -> bool:
    """Whether MPS is to be had. ``slo``: in mean service times alone without MPS; ``slowdown``: the mean service time
    alone under MPS over that; ``load``: arrivals x mean service time, without MPS.
    """
    slowdown *= WAITING
    if slowdown * load >= 1:
        return False
    slo_under = slo / slowdown
    without = queueing.play(on_grid(load, 1.0, slo), 0)
    alone_under = queueing.play(on_grid(load * slowdown, 1.0, slo_under), 0)
    if alone_under.late > max(1 - target, without.late + queueing.UNAVOIDED):
        return False
    beside = on_grid(load * slowdown, GUESSED_INFLATION, slo_under)
    under = queueing.play(beside, queueing.LIMITS[queueing.best_rung(beside, target)])
    return under.idle + queueing.BESIDE_RATE * under.beside >= TIE * without.idle
