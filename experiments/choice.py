"""MPS or not: decided once, before a pair starts, since a process joins MPS when its CUDA context is created."""

GPU_BOUND_SHARE = 0.6  # of a request's time that the GPU works for it


def mps_pays(busy_share: float) -> bool:
    """Whether a service is to run under MPS, by the share of its time alone in which the GPU works for it.

    A service that keeps the GPU busy leaves no room beside itself, and MPS makes it slower; one that is bound by its
    launches leaves most of the GPU idle, which only sharing in space can use.
    """
    return busy_share < GPU_BOUND_SHARE
