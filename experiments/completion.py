"""Points in a device's work, and waiting for them: the one place where experiments synchronise.

On a CPU an op has happened when it returns, so there is nothing to wait for.
"""

from collections.abc import Callable

import torch

Wait = Callable[[], None]


def mark(device: torch.device) -> Wait:
    """Mark everything enqueued so far on the current stream; the result waits until it has happened.

    A wait releases the GIL. It spins, since a sleeping wait would add some 50 us to every latency.
    """
    if device.type != "cuda":
        return _happened
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _happened() -> None:
    pass
