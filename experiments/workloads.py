"""The workloads of the experiments, as data: what can be run by name.

A workload builds a `Program`, whose `step()` enqueues one request or one training step and does not wait for the
device: the caller decides when to wait (see `completion`), so that a request can end for Herald once its last op is
enqueued while its latency is measured to completion. Everything follows from the seed, in torch's default precision
(fp32; cuDNN may use TF32). Nothing here knows Herald.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from herald.errors import ConfigError
from herald.experiments import convnets, language_models, recipes, small_networks
from herald.experiments.programs import Decode, GraphDecode, GraphTraining, Program
from herald.experiments.recipes import Build
from herald.experiments.roles import Role

BOTH = ("cpu", "cuda")
CUDA = ("cuda",)


@dataclass(frozen=True)
class Workload:
    """A named program and where it runs."""

    name: str
    role: Role
    devices: tuple[str, ...]  # device types it is sized for
    summary: str
    build: Build

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


def check(name: str, role: Role, device_type: str) -> None:
    """Raises ConfigError for what cannot play ``role`` on a device of that type."""
    if name not in names(role, device_type):
        what = "a service" if role == "inference" else "a trainer"
        raise ConfigError(
            f"workload {name!r} is not {what} for --device {device_type}: there are "
            f"{', '.join(names(role, device_type))}"
        )


def names(role: Role, device_type: str) -> list[str]:
    """What can play ``role`` on a device of that type."""
    return [w.name for w in WORKLOADS.values() if w.role == role and device_type in w.devices]


# GPU-sized, then small ones for CPUs (whose names begin with "cpu") and for both.
_ALL = (
    Workload(
        "transformer",
        "inference",
        CUDA,
        "Transformer forward, 6+6 layers, d=512, batch 32, 256+256 tokens",
        recipes.transformer,
    ),
    Workload(
        "graph-decode",
        "inference",
        CUDA,
        "decoder-only Transformer, 8 layers, d=1024, batch 32: 24 replays of a captured decoding step",
        recipes.decode(GraphDecode, recipes.DECODER, batch=32, steps=24),
    ),
    Workload(
        "eager-decode",
        "inference",
        CUDA,
        "the same decoder, batch 8: 24 decoding steps, op by op",
        recipes.decode(Decode, recipes.DECODER, batch=8, steps=24),
    ),
    Workload(
        "bert",
        "inference",
        CUDA,
        "BERT-base encoder, batch 1, 128 tokens",
        recipes.bert(language_models.BERT_BASE, time=128, batch=1),
    ),
    Workload(
        "resnet50-b4",
        "inference",
        CUDA,
        "ResNet50 forward, 224x224, batch 4",
        recipes.image_forward(lambda: convnets.resnet(convnets.RESNET50), side=224, batch=4),
    ),
    Workload(
        "convnext",
        "inference",
        CUDA,
        "ConvNeXt-tiny forward, 224x224, batch 4",
        recipes.image_forward(lambda: convnets.convnext(convnets.CONVNEXT_TINY), side=224, batch=4),
    ),
    Workload(
        "cpu-transformer",
        "inference",
        BOTH,
        "Transformer encoder, 4 layers, d=128, batch 2, 64 tokens",
        recipes.cpu_transformer,
    ),
    Workload(
        "cpu-decode",
        "inference",
        BOTH,
        "decoder-only Transformer, 2 layers, d=32, batch 2: 8 decoding steps, op by op",
        recipes.decode(Decode, recipes.DECODER_SMALL, batch=2, steps=8),
    ),
    Workload("vgg16", "training", CUDA, "VGG16, 224x224, batch 32", recipes.vgg16(convnets.VGG16, 32)),
    Workload(
        "vgg16-graph",
        "training",
        CUDA,
        "VGG16, 224x224, batch 32, the step captured in a CUDA graph",
        lambda device: GraphTraining(recipes.vgg16(convnets.VGG16, 32)(device)),
    ),
    Workload(
        "vgg16-compiled",
        "training",
        CUDA,
        "VGG16, 224x224, batch 32, under torch.compile",
        recipes.vgg16(convnets.VGG16, 32, compiled=True),
    ),
    Workload(
        "resnet50",
        "training",
        CUDA,
        "ResNet50, 224x224, batch 32",
        recipes.image_training(lambda: convnets.resnet(convnets.RESNET50), side=224, batch=32, classes=1000),
    ),
    Workload(
        "convnext-train",
        "training",
        CUDA,
        "ConvNeXt-tiny, 224x224, batch 32",
        recipes.image_training(lambda: convnets.convnext(convnets.CONVNEXT_TINY), side=224, batch=32, classes=1000),
    ),
    Workload(
        "rnnlm",
        "training",
        CUDA,
        "LSTM language model, 2x1500 units, 10000 words, batch 20, 35 tokens",
        recipes.rnnlm(10_000, 1500, time=35, batch=20),
    ),
    Workload(
        "gpt2",
        "training",
        CUDA,
        "GPT-2 small (12 layers, d=768), 50257 words, batch 8, 512 tokens, AdamW",
        recipes.gpt(language_models.GPT2_SMALL, time=512, batch=8),
    ),
    Workload(
        "gpt2-compiled",
        "training",
        CUDA,
        "GPT-2 small, batch 8, 512 tokens, AdamW, under torch.compile",
        recipes.gpt(language_models.GPT2_SMALL, time=512, batch=8, compiled=True),
    ),
    Workload(
        "gpt2-bf16-compiled",
        "training",
        CUDA,
        "GPT-2 small, batch 8, 512 tokens, AdamW, under torch.compile and bfloat16 autocast",
        recipes.gpt(language_models.GPT2_SMALL, time=512, batch=8, compiled=True, half=True),
    ),
    Workload(
        "bert-train",
        "training",
        CUDA,
        "BERT-base, batch 16, 128 tokens, AdamW",
        recipes.bert_training(language_models.BERT_BASE, time=128, batch=16),
    ),
    Workload(
        "dlrm",
        "training",
        CUDA,
        "DLRM: 26 tables of 100000 x 64, perceptrons 512-256, batch 2048, sparse SGD",
        recipes.dlrm(small_networks.DLRM, batch=2048),
    ),
    Workload(
        "cpu-vgg",
        "training",
        BOTH,
        "VGG16 at 1/4 width, 32x32, batch 16",
        recipes.vgg16(convnets.VGG16_SMALL, 16),
    ),
    Workload(
        "cpu-vgg-loaders",
        "training",
        ("cpu",),
        "VGG16 at 1/4 width, 32x32, batch 16, images prepared by two loader processes",
        recipes.loaded_vgg16(convnets.VGG16_SMALL, 16, num_loaders=2),
    ),
    Workload(
        "cpu-vgg-compiled",
        "training",
        BOTH,
        "VGG16 at 1/4 width, 32x32, batch 16, under torch.compile",
        recipes.vgg16(convnets.VGG16_SMALL, 16, compiled=True),
    ),
    Workload(
        "cpu-rnnlm",
        "training",
        BOTH,
        "LSTM language model, 2x64 units, 500 words, batch 8, 16 tokens",
        recipes.rnnlm(500, 64, time=16, batch=8),
    ),
    Workload(
        "cpu-resnet",
        "training",
        BOTH,
        "ResNet of 4 blocks at 1/8 width, 32x32, batch 8",
        recipes.image_training(lambda: convnets.resnet(convnets.RESNET_SMALL), side=32, batch=8, classes=10),
    ),
    Workload(
        "cpu-gpt",
        "training",
        BOTH,
        "GPT of 2 layers, d=32, 100 words, batch 4, 16 tokens, AdamW",
        recipes.gpt(language_models.TINY, time=16, batch=4),
    ),
    Workload(
        "cpu-dlrm",
        "training",
        BOTH,
        "DLRM: 4 tables of 50 x 8, batch 16, sparse SGD",
        recipes.dlrm(small_networks.DLRM_SMALL, batch=16),
    ),
    Workload(
        "small-ops",
        "training",
        BOTH,
        "76 residual layers of width 16, batch 8: 2,000 tiny ops a step",
        recipes.small_ops,
    ),
)
WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _ALL}
