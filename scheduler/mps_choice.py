"""Whether to run a pair of jobs under MPS: a pure rule, for whoever starts them (the choice cannot change later).

MPS lets requests and training run side by side, which is worth what slack there is. But it slows some services down
even alone (CUDA graphs of many small kernels: 1.08 to 1.10 x on an H200), and that is lost at once. So for a service
that keeps the GPU busy the queue is played through, as the controller does: without MPS with a gate that closes at
once, since there contexts take turns anyway; under MPS as far as the SLO lets requests run beside training, at a guess
of what they do to each other. Where nothing can be given away, it goes without: the GPU is its own while trainers wait.

A service that waits for its host goes under MPS. Contexts would change between its kernels, the guess is mostly too
high for it, and what MPS costs it alone cannot be told beforehand from what hosts do: probes on H200s said 0.53 to 1.73
(`slowdown` in the rows of the frontier), and `strict` had 0.6 to 2.6 x the p99 under MPS that it had without (the tenth
to the thirteenth run, four pairs). Sharing mostly brings more than that. The edge between the two kinds is a round
number: services of these rows keep the GPU busy for 0.96 to 0.99 of a request, or for 0.2 to 0.87.
"""

from herald.scheduler import queueing
from herald.scheduler.queueing import on_grid

GUESSED_INFLATION = 2.0
GPU_BOUND = 0.9  # of a request, the device works for it: nothing is to be gained beside it
# What there must be to gain, of training. Under `strict` on an H200 the p99 of such services is 1.01 to 1.03 x
# (Transformer) and 1.2 x (graph decode) under MPS what it is without.
GAIN = 1.01


def mps_pays(*, slo: float, slowdown: float, load: float, busy: float = 1.0, target: float = 0.99) -> bool:
    """Whether MPS is to be had. ``slo``: in mean service times alone without MPS; ``slowdown``: the mean service time
    alone under MPS over that; ``load``: arrivals x mean service time, without MPS; ``busy``: the share of a request in
    which the device works for it.
    """
    if busy < GPU_BOUND:
        return True
    if slowdown * load >= 1:
        return False
    slo_under = slo / slowdown
    without = queueing.play(on_grid(load, 1.0, slo), 0)
    alone_under = queueing.play(on_grid(load * slowdown, 1.0, slo_under), 0)
    if alone_under.late > max(1 - target, without.late + queueing.UNAVOIDED):
        return False
    beside = on_grid(load * slowdown, GUESSED_INFLATION, slo_under)
    under = queueing.play(beside, queueing.LIMITS[queueing.best_rung(beside, target)])
    return under.idle + queueing.BESIDE_RATE * under.beside >= GAIN * without.idle
