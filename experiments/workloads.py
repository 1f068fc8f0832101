"""The workloads of the experiments, as data: what can be run by name.

A workload builds a `Program`, whose `step()` enqueues one request or one training step and does not wait for the
device: the caller decides when to wait (see `completion`), so that a request can end for Herald once its last op is
enqueued while its latency is measured to completion. Everything follows from the seed. Nothing here knows Herald.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from herald.errors import ConfigError
from herald.experiments import loading, networks
from herald.experiments.roles import Role


class Program(Protocol):
    """A workload in memory."""

    def step(self) -> Tensor:
        """Enqueue one request (its output) or one training step (its loss, detached). Does not wait for the device."""
        ...


@dataclass(frozen=True)
class Workload:
    """A named program and where it runs."""

    name: str
    role: Role
    devices: tuple[str, ...]  # device types it is sized for
    summary: str
    build: Callable[[torch.device], Program]

    def make(self, device: str | torch.device, seed: int) -> Program:
        """Build it on ``device``; the same seed gives the same weights, data and losses. Raises ConfigError."""
        device = torch.device(device)
        if device.type not in self.devices:
            raise ConfigError(
                f"workload {self.name!r} on device {str(device)!r}: it is made for {', '.join(self.devices)}; "
                f"there are {', '.join(names(self.role, device.type))}"
            )
        torch.manual_seed(seed)
        return self.build(device)


def get(name: str) -> Workload:
    """The workload of that name. Raises ConfigError naming those that exist."""
    if name not in WORKLOADS:
        raise ConfigError(f"workload = {name!r}: allowed are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def names(role: Role, device_type: str) -> list[str]:
    """What can play ``role`` on a device of that type."""
    return [w.name for w in WORKLOADS.values() if w.role == role and device_type in w.devices]


# Programs ------------------------------------------------------------------------------------------------------------


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


class GraphDecode:
    """Inference of ``steps`` greedy decoding steps: one step is captured in a CUDA graph and replayed.

    Captured without gates, whatever is attached: an inference job has high priority and is never gated.
    """

    prompt = 64

    def __init__(self, shape: networks.DecoderShape, batch: int, steps: int, device: torch.device) -> None:
        self.model = networks.CachedDecoder(shape, batch).to(device).eval()
        self.steps = steps
        self.replay = _captured(self._decode)

    @torch.no_grad()
    def _decode(self) -> Tensor:
        return self.model()  # type: ignore[no-any-return]  # nn.Module.__call__ is Any

    def step(self) -> Tensor:
        """Enqueue one request: rewind to the end of the prompt, then ``steps`` replays."""
        self.model.rewind(self.prompt)
        for _ in range(self.steps):
            tokens = self.replay()
        return tokens


class Training:
    """SGD with momentum over a few batches in turn."""

    def __init__(
        self, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device, rate: float
    ) -> None:
        self.model = model.to(device).train()
        self.batches = [(inputs.to(device), targets.to(device)) for inputs, targets in batches]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        self.steps = 0

    def step(self) -> Tensor:
        """Enqueue one training step."""
        inputs, targets = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        return self.train_on(inputs, targets)

    def train_on(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step on these tensors; the loss, detached."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        self.optimizer.step()
        return loss.detach()


class LoadedTraining:
    """The same training on batches that loader processes prepare."""

    def __init__(self, training: Training, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.training = training
        self.batches = batches

    def step(self) -> Tensor:
        """Take the next batch, perhaps after waiting for it, and train on it."""
        return self.training.train_on(*next(self.batches))


class GraphTraining:
    """The same training with the whole step captured in one CUDA graph."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.inputs, self.targets = (tensor.clone() for tensor in training.batches[0])
        self.replay = _captured(lambda: training.train_on(self.inputs, self.targets))

    def step(self) -> Tensor:
        """Copy the next batch in and replay."""
        inputs, targets = self.training.batches[self.training.steps % len(self.training.batches)]
        self.training.steps += 1
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
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


# What each is built from ---------------------------------------------------------------------------------------------


def _transformer(device: torch.device) -> Program:
    model = nn.Transformer(d_model=512, num_encoder_layers=6, num_decoder_layers=6, batch_first=True)
    return Forward(model, [torch.randn(32, 256, 512), torch.randn(32, 256, 512)], device)


def _graph_decode(device: torch.device) -> Program:
    shape = networks.DecoderShape(width=1024, layers=8, heads=16, vocabulary=50_257, context=256)
    return GraphDecode(shape, batch=32, steps=24, device=device)


def _cpu_transformer(device: torch.device) -> Program:
    layer = nn.TransformerEncoderLayer(d_model=128, nhead=4, dim_feedforward=512, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
    return Forward(model, [torch.randn(2, 64, 128)], device)


def _vgg16(shape: networks.VggShape, batch: int) -> Callable[[torch.device], Training]:
    def build(device: torch.device) -> Training:
        batches = [
            (torch.randn(batch, 3, shape.image, shape.image), torch.randint(shape.classes, (batch,))) for _ in range(4)
        ]
        return Training(networks.vgg(shape), batches, device, rate=0.001)

    return build


def _loaded_vgg16(shape: networks.VggShape, batch: int, num_loaders: int) -> Callable[[torch.device], Program]:
    def build(device: torch.device) -> Program:
        augmentation = loading.Augmentation(raw_side=4 * shape.image, side=shape.image)
        images = loading.SyntheticImages(augmentation, shape.classes, seed=torch.initial_seed())
        return LoadedTraining(_vgg16(shape, batch)(device), loading.batches(images, batch, num_loaders))

    return build


def _rnnlm(vocabulary: int, width: int, time: int, batch: int) -> Callable[[torch.device], Training]:
    def build(device: torch.device) -> Training:
        tokens = [torch.randint(vocabulary, (time + 1, batch)) for _ in range(4)]
        batches = [(text[:-1], text[1:]) for text in tokens]
        return Training(networks.RnnLm(vocabulary, width, layers=2), batches, device, rate=0.1)

    return build


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "transformer",
            "inference",
            ("cuda",),
            "Transformer forward, 6+6 layers, d=512, batch 32, 256+256 tokens",
            _transformer,
        ),
        Workload(
            "graph-decode",
            "inference",
            ("cuda",),
            "decoder-only Transformer, 8 layers, d=1024, batch 32: 24 replays of a captured decoding step",
            _graph_decode,
        ),
        Workload(
            "cpu-transformer",
            "inference",
            ("cpu", "cuda"),
            "Transformer encoder, 4 layers, d=128, batch 2, 64 tokens",
            _cpu_transformer,
        ),
        Workload("vgg16", "training", ("cuda",), "VGG16, 224x224, batch 32", _vgg16(networks.VGG16, 32)),
        Workload(
            "vgg16-graph",
            "training",
            ("cuda",),
            "VGG16, 224x224, batch 32, the step captured in a CUDA graph",
            lambda device: GraphTraining(_vgg16(networks.VGG16, 32)(device)),
        ),
        Workload(
            "rnnlm",
            "training",
            ("cuda",),
            "LSTM language model, 2x1500 units, 10000 words, batch 20, 35 tokens",
            _rnnlm(10_000, 1500, time=35, batch=20),
        ),
        Workload(
            "cpu-vgg",
            "training",
            ("cpu", "cuda"),
            "VGG16 at 1/4 width, 32x32, batch 16",
            _vgg16(networks.VGG16_SMALL, 16),
        ),
        Workload(
            "cpu-vgg-loaders",
            "training",
            ("cpu",),
            "VGG16 at 1/4 width, 32x32, batch 16, images prepared by two loader processes",
            _loaded_vgg16(networks.VGG16_SMALL, 16, num_loaders=2),
        ),
        Workload(
            "cpu-rnnlm",
            "training",
            ("cpu", "cuda"),
            "LSTM language model, 2x64 units, 500 words, batch 8, 16 tokens",
            _rnnlm(500, 64, time=16, batch=8),
        ),
    )
}
