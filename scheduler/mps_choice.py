"""Whether to run a pair of jobs under MPS: a pure rule, for whoever starts them (the choice cannot change later).

MPS lets requests and training run side by side, so wherever requests have slack it is worth having. But it slows some
services down even alone (CUDA graphs of many small kernels: 1.10 x on an H200), and what makes them late alone cannot
be made up for. So: MPS, unless the service alone under MPS would come too near its SLO.
"""


def mps_pays(*, alone_p99_ns: float, slo_ns: float, slowdown: float, load: float) -> bool:
    """Whether MPS is to be had: ``slowdown`` is the mean service time alone under MPS over that without, ``load`` and
    ``alone_p99_ns`` are those without. The p99 is taken to grow as that of a queue does: with 1 / (1 - load).
    """
    under_mps = slowdown * load
    if under_mps >= 1:
        return False
    return alone_p99_ns * slowdown * (1 - load) / (1 - under_mps) <= slo_ns
