"""How the networks, data and optimizers of the workloads go together. Everything follows from torch's seed.

Precision is torch's default: fp32, where cuDNN may use TF32.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from herald.experiments import convnets, language_models, loading, small_networks
from herald.experiments.programs import Batch, Decode, Forward, LoadedTraining, Program, Training, sgd

NUM_BATCHES = 4  # that a trainer takes in turn
CHAIN_LAYERS = 76  # make 2,000 op calls of a training step
DECODER = language_models.DecoderShape(width=1024, layers=8, heads=16, vocabulary=50_257, context=256)
DECODER_SMALL = language_models.DecoderShape(width=32, layers=2, heads=2, vocabulary=100, context=32)

Build = Callable[[torch.device], Program]
BuildTraining = Callable[[torch.device], Training]


def transformer(device: torch.device) -> Program:
    """Inference with an encoder and a decoder of six layers each."""
    model = nn.Transformer(d_model=512, num_encoder_layers=6, num_decoder_layers=6, batch_first=True)
    return Forward(model, [torch.randn(32, 256, 512), torch.randn(32, 256, 512)], device)


def cpu_transformer(device: torch.device) -> Program:
    """Inference with a small encoder."""
    layer = nn.TransformerEncoderLayer(d_model=128, nhead=4, dim_feedforward=512, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
    return Forward(model, [torch.randn(2, 64, 128)], device)


def decode(kind: type[Decode], shape: language_models.DecoderShape, batch: int, steps: int) -> Build:
    """Inference of ``steps`` decoding steps, in the form of ``kind``."""
    return partial(kind, shape, batch, steps)


def image_forward(network: Callable[[], nn.Module], side: int, batch: int) -> Build:
    """Inference with a network on square images."""
    return lambda device: Forward(network(), [torch.randn(batch, 3, side, side)], device)


def image_training(
    network: Callable[[], nn.Module],
    side: int,
    batch: int,
    classes: int,
    *,
    rate: float = 0.001,
    compiled: bool = False,
) -> BuildTraining:
    """SGD of a network on square images of noise."""

    def build(device: torch.device) -> Training:
        batches = [(torch.randn(batch, 3, side, side), torch.randint(classes, (batch,))) for _ in range(NUM_BATCHES)]
        return Training(network(), batches, device, sgd(rate), compiled=compiled)

    return build


def vgg16(shape: convnets.VggShape, batch: int, *, compiled: bool = False) -> BuildTraining:
    """Training of a VGG."""
    return image_training(lambda: convnets.vgg(shape), shape.image, batch, shape.classes, compiled=compiled)


def loaded_vgg16(shape: convnets.VggShape, batch: int, num_loaders: int) -> Build:
    """The same on images that loader processes prepare."""

    def build(device: torch.device) -> Program:
        augmentation = loading.Augmentation(raw_side=4 * shape.image, side=shape.image)
        images = loading.SyntheticImages(augmentation, shape.classes, seed=torch.initial_seed())
        return LoadedTraining(vgg16(shape, batch)(device), loading.batches(images, batch, num_loaders))

    return build


def rnnlm(vocabulary: int, width: int, time: int, batch: int) -> BuildTraining:
    """Training of an LSTM language model."""

    def build(device: torch.device) -> Training:
        tokens = [torch.randint(vocabulary, (time + 1, batch)) for _ in range(NUM_BATCHES)]
        batches = [(text[:-1], text[1:]) for text in tokens]
        return Training(language_models.RnnLm(vocabulary, width, layers=2), batches, device, sgd(0.1))

    return build


def gpt(
    shape: language_models.TransformerShape, time: int, batch: int, *, compiled: bool = False, half: bool = False
) -> BuildTraining:
    """Training of a GPT with AdamW."""

    def build(device: torch.device) -> Training:
        tokens = [torch.randint(shape.vocabulary, (batch, time + 1)) for _ in range(NUM_BATCHES)]
        batches = [(text[:, :-1], text[:, 1:]) for text in tokens]
        return Training(language_models.Gpt(shape), batches, device, _adamw, compiled=compiled, half=half)

    return build


def bert(shape: language_models.TransformerShape, time: int, batch: int) -> Build:
    """Inference with a BERT encoder."""

    def build(device: torch.device) -> Program:
        return Forward(language_models.BertEncoder(shape), [torch.randint(shape.vocabulary, (batch, time))], device)

    return build


def bert_training(shape: language_models.TransformerShape, time: int, batch: int) -> BuildTraining:
    """Training of a BERT on masked words with AdamW."""

    def build(device: torch.device) -> Training:
        batches: list[Batch] = [tuple(torch.randint(shape.vocabulary, (2, batch, time))) for _ in range(NUM_BATCHES)]
        return Training(language_models.Bert(shape), batches, device, _adamw)

    return build


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


def dlrm(shape: small_networks.DlrmShape, batch: int, bag: int = 1) -> BuildTraining:
    """Training of a recommender; each sample takes ``bag`` rows of each table."""

    def build(device: torch.device) -> Training:
        batches = [
            (
                torch.randn(batch, shape.dense),
                torch.randint(shape.rows, (shape.tables, batch, bag)),
                torch.randint(2, (batch,)).float(),
            )
            for _ in range(NUM_BATCHES)
        ]
        loss = nn.functional.binary_cross_entropy_with_logits
        return Training(small_networks.Dlrm(shape), batches, device, _plain_sgd, loss)

    return build


def _plain_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)  # no momentum: gradients of tables are sparse


def small_ops(device: torch.device) -> Training:
    """Training of the chain."""
    batches = [(torch.randn(8, 16), torch.randint(10, (8,))) for _ in range(NUM_BATCHES)]
    return Training(small_networks.Chain(width=16, layers=CHAIN_LAYERS, classes=10), batches, device, sgd(0.01))
