"""Whether to run a pair of jobs under MPS: a pure rule, for whoever starts them (the choice cannot change later).

MPS lets requests and training run side by side, which is worth what slack there is. But it slows some services down
even alone (CUDA graphs of many small kernels: 1.08 to 1.10 x on an H200), and that is lost at once. So the queue is
played through, as the controller does: without MPS with a gate that closes at once, since there contexts take turns
anyway; under MPS as far as the SLO lets requests run beside training, at a guess of what they do to each other.

A trainer that waits at a closed gate still costs requests something. Those that keep the GPU busy pay a few percent
under MPS and nothing without, where it is theirs alone; between the kernels of others contexts change, which is no
cheaper.
"""

from herald.scheduler import queueing
from herald.scheduler.queueing import on_grid

GUESSED_INFLATION = 2.0
GPU_BOUND = 0.9  # of a request, the device works for it
# Of service times beside trainers that wait, beyond what MPS does to a service that is alone: under `strict` on an H200
# 1.01 (Transformer) to 1.05 (graph decode), where without MPS it is 1.00 to 1.01.
WAITING = 1.04
TIE = 0.99  # what is lost for sure against what is guessed


def mps_pays(*, slo: float, slowdown: float, load: float, busy: float = 1.0, target: float = 0.99) -> bool:
    """Whether MPS is to be had. ``slo``: in mean service times alone without MPS; ``slowdown``: the mean service time
    alone under MPS over that; ``load``: arrivals x mean service time, without MPS; ``busy``: the share of a request in
    which the device works for it.
    """
    if busy >= GPU_BOUND:
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
