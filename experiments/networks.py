"""The networks of the experiments, built from data. Owns layers only: no data, no optimizer, no device choice.

Written by hand where the usual home is torchvision, so that every machine with torch runs the same network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class VggShape:
    """A VGG: numbers are 3x3 convolutions of that many channels, "M" is a 2x2 max pool."""

    image: int
    features: tuple[int | str, ...]
    hidden: int
    classes: int
    dropout: float = 0.5


VGG16 = VggShape(
    image=224,
    features=(64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    hidden=4096,
    classes=1000,
)
# The same depth at 1/4 of the width: on a CPU its ops take about a millisecond, and an op that runs when a gate closes
# still ends.
VGG16_SMALL = VggShape(
    image=32,
    features=(16, 16, "M", 32, 32, "M", 64, 64, 64, "M", 128, 128, 128, "M", 128, 128, 128, "M"),
    hidden=128,
    classes=100,
)


def vgg(shape: VggShape) -> nn.Sequential:
    """Simonyan & Zisserman 2015, configuration D for VGG16. Input (batch, 3, image, image).

    No adaptive pooling before the classifier: at the image size of the shape it is the identity, and its
    backward pass is not deterministic on CUDA.
    """
    layers: list[nn.Module] = []
    channels = 3
    for item in shape.features:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU(inplace=True)]
            channels = item
    side = shape.image // 2 ** shape.features.count("M")
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * side * side, shape.hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(shape.dropout),
        nn.Linear(shape.hidden, shape.hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(shape.dropout),
        nn.Linear(shape.hidden, shape.classes),
    )


class RnnLm(nn.Module):
    """A two-layer LSTM language model (Zaremba et al. 2014, "large": 1500 units), without dropout."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (time, batch) to logits (time, batch, vocabulary)."""
        hidden, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(hidden)
        return logits


@dataclass(frozen=True)
class DecoderShape:
    """A decoder-only Transformer that writes one token a step into a static key/value cache."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int  # length of the cache; attention always reads all of it, so every step costs the same


class CachedDecoder(nn.Module):
    """One greedy decoding step over static buffers: what a serving engine captures in a CUDA graph.

    State (tokens, position, caches) is updated in place, so that a replay continues where the last one ended.
    """

    tokens: Tensor  # (batch,) the newest token of each sequence
    position: Tensor  # (1,) where the next key and value go
    slots: Tensor  # (context,) 0, 1, 2 ...

    def __init__(self, shape: DecoderShape, batch: int) -> None:
        super().__init__()
        self.context = shape.context
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(_CachedBlock(shape, batch) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.register_buffer("tokens", torch.zeros(batch, dtype=torch.long))
        self.register_buffer("position", torch.zeros(1, dtype=torch.long))
        self.register_buffer("slots", torch.arange(shape.context))

    def forward(self) -> Tensor:
        """Decode one token for every sequence; returns the tokens, (batch,)."""
        visible = (self.slots <= self.position).view(1, 1, 1, -1)
        hidden = self.embedding(self.tokens).unsqueeze(1)
        for block in self.blocks:
            hidden = block(hidden, self.position, visible)
        self.tokens.copy_(self.head(self.norm(hidden)).squeeze(1).argmax(-1))
        self.position.add_(1).remainder_(self.context)
        return self.tokens

    def rewind(self, position: int) -> None:
        """Start a request: the prompt fills the first ``position`` slots."""
        self.position.fill_(position)


class _CachedBlock(nn.Module):
    """Pre-norm attention over the cache, then a feed-forward network."""

    keys: Tensor  # (batch, heads, context, head width)
    values: Tensor

    def __init__(self, shape: DecoderShape, batch: int) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(shape.width),
            nn.Linear(shape.width, 4 * shape.width),
            nn.GELU(),
            nn.Linear(4 * shape.width, shape.width),
        )
        cache = (batch, shape.heads, shape.context, shape.width // shape.heads)
        self.register_buffer("keys", torch.randn(cache))
        self.register_buffer("values", torch.randn(cache))

    def forward(self, hidden: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        batch, _, width = hidden.shape
        qkv = self.qkv(self.attention_norm(hidden)).view(batch, 3, self.heads, 1, width // self.heads)
        query, key, value = qkv.unbind(1)
        self.keys.index_copy_(2, position, key)
        self.values.index_copy_(2, position, value)
        attended = nn.functional.scaled_dot_product_attention(query, self.keys, self.values, attn_mask=visible)
        hidden = hidden + self.out(attended.reshape(batch, 1, width))
        return hidden + self.feed_forward(hidden)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any
