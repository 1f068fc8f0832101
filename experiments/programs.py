"""Workloads in memory: what one request or one training step is, in the few forms that the experiments need.

A step is enqueued, not waited for: the caller decides when to wait (see `completion`). Nothing here knows Herald.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from herald.experiments import language_models

Batch = tuple[Tensor, ...]  # the model's inputs, then the targets
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Program(Protocol):
    """A workload in memory."""

    def step(self) -> Tensor:
        """Enqueue one request (its output) or one training step (its loss, detached). Does not wait for the device."""
        ...


class Forward:
    """Inference of one forward pass over a fixed batch."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.inputs = [tensor.to(device) for tensor in inputs]

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Enqueue one request."""
        output: Tensor = self.model(*self.inputs)
        return output


class Decode:
    """Inference of ``steps`` greedy decoding steps, op by op, as a small eager server does it."""

    prompt = 64

    def __init__(self, shape: language_models.DecoderShape, batch: int, steps: int, device: torch.device) -> None:
        self.model = language_models.CachedDecoder(shape, batch).to(device).eval()
        self.steps = steps

    @torch.no_grad()
    def decode(self) -> Tensor:
        """One token for every sequence."""
        return self.model()  # type: ignore[no-any-return]  # nn.Module.__call__ is Any

    def step(self) -> Tensor:
        """Enqueue one request: rewind to the end of the prompt, then ``steps`` tokens."""
        self.model.rewind(min(self.prompt, self.model.context - self.steps))
        for _ in range(self.steps):
            tokens = self.decode()
        return tokens


class GraphDecode(Decode):
    """The same with one decoding step captured in a CUDA graph and replayed.

    Captured without gates, whatever is attached: an inference job has high priority and is never gated.
    """

    def __init__(self, shape: language_models.DecoderShape, batch: int, steps: int, device: torch.device) -> None:
        super().__init__(shape, batch, steps, device)
        self.replay = _captured(super().decode)

    def decode(self) -> Tensor:
        """One token for every sequence."""
        return self.replay()


def sgd(rate: float) -> MakeOptimizer:
    """SGD with momentum."""
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def word_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of classes, over whatever dimensions come before them."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


class Training:
    """Training over a few batches in turn; with ``half``, forward and loss in bfloat16 where autocast says so."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        device: torch.device,
        optimizer: MakeOptimizer,
        loss: Loss = word_loss,
        *,
        compiled: bool = False,
        half: bool = False,
    ) -> None:
        self.model = model.to(device).train()
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)
        self.batches = [tuple(tensor.to(device) for tensor in batch) for batch in batches]
        self.optimizer = optimizer(self.model.parameters())
        self.loss = loss
        self.steps = 0
        if compiled:  # default mode, at the first step; Module.compile() skips models whose class is torch's own
            self.model = cast("nn.Module", torch.compile(self.model))

    def step(self) -> Tensor:
        """Enqueue one training step."""
        batch = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        return self.train_on(*batch)

    def train_on(self, *batch: Tensor) -> Tensor:
        """One step on these tensors; the loss, detached."""
        *inputs, targets = batch
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.loss(self.model(*inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        self.optimizer.step()
        return loss.detach()


class LoadedTraining:
    """The same training on batches that loader processes prepare."""

    def __init__(self, training: Training, batches: Iterator[Batch]) -> None:
        self.training = training
        self.batches = batches

    def step(self) -> Tensor:
        """Take the next batch, perhaps after waiting for it, and train on it."""
        return self.training.train_on(*next(self.batches))


class GraphTraining:
    """The same training with the whole step captured in one CUDA graph."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.batch = tuple(tensor.clone() for tensor in training.batches[0])
        self.replay = _captured(lambda: training.train_on(*self.batch))

    def step(self) -> Tensor:
        """Copy the next batch in and replay."""
        batch = self.training.batches[self.training.steps % len(self.training.batches)]
        self.training.steps += 1
        for static, fresh in zip(self.batch, batch, strict=True):
            static.copy_(fresh)
        return self.replay().clone()


def _captured(function: Callable[[], Tensor], warmup: int = 3) -> Callable[[], Tensor]:
    """``function`` as a CUDA graph: calling the result replays it and returns its static output."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose kernels and allocate workspaces outside the capture
        for _ in range(warmup):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
