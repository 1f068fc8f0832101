"""The language models of the experiments, built from data. Owns layers only: no data, no optimizer, no device.

Written by hand where the usual home is another library, so that every machine with torch runs the same network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TransformerShape:
    """A stack of attention blocks over learnt token and position embeddings."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int


GPT2_SMALL = TransformerShape(width=768, layers=12, heads=12, vocabulary=50_257, context=1024)
BERT_BASE = TransformerShape(width=768, layers=12, heads=12, vocabulary=30_522, context=512)
TINY = TransformerShape(width=32, layers=2, heads=2, vocabulary=100, context=32)


class Gpt(nn.Module):
    """GPT-2 (Radford et al. 2019) without dropout: pre-norm blocks, causal attention, head tied to the embedding."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.embedding = _Embedding(shape)
        self.blocks = nn.Sequential(*(_GptBlock(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.embedding.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, time) to logits (batch, time, vocabulary)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens))))
        return logits


class Bert(nn.Module):
    """BERT's encoder (Devlin et al. 2019) without dropout: post-norm blocks, attention to every token."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.embedding = _Embedding(shape)
        self.norm = nn.LayerNorm(shape.width)
        self.blocks = nn.Sequential(*(_BertBlock(shape) for _ in range(shape.layers)))
        self.head = nn.Linear(shape.width, shape.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, time) to logits of the masked words (batch, time, vocabulary)."""
        return self.head(self.encode(tokens))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, time) to features (batch, time, width)."""
        return self.blocks(self.norm(self.embedding(tokens)))  # type: ignore[no-any-return]  # likewise


class BertEncoder(nn.Module):
    """The encoder alone, as it serves embeddings."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.bert = Bert(shape)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, time) to features (batch, time, width)."""
        return self.bert.encode(tokens)


class _Embedding(nn.Module):
    slots: Tensor  # (context,) 0, 1, 2 ...

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.register_buffer("slots", torch.arange(shape.context))
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(tokens) + self.positions(self.slots[: tokens.shape[1]])
        return embedded


class _Attention(nn.Module):
    def __init__(self, shape: TransformerShape, *, causal: bool) -> None:
        super().__init__()
        self.heads = shape.heads
        self.causal = causal
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, time, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(attended.transpose(1, 2).reshape(batch, time, width))  # type: ignore[no-any-return]


class _GptBlock(nn.Module):
    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(shape.width), _Attention(shape, causal=True))
        self.feed_forward = nn.Sequential(nn.LayerNorm(shape.width), *_feed_forward(shape.width))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden)
        return hidden + self.feed_forward(hidden)  # type: ignore[no-any-return]


class _BertBlock(nn.Module):
    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.attention = _Attention(shape, causal=False)
        self.attention_norm = nn.LayerNorm(shape.width)
        self.feed_forward = nn.Sequential(*_feed_forward(shape.width))
        self.feed_forward_norm = nn.LayerNorm(shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.attention_norm(hidden + self.attention(hidden))
        return self.feed_forward_norm(hidden + self.feed_forward(hidden))  # type: ignore[no-any-return]


def _feed_forward(width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)


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
        """Start a request: the prompt fills the first ``position`` slots and ends with token 0."""
        self.position.fill_(position)
        self.tokens.zero_()


class CachedAttention(nn.Module):
    """A pre-norm block of attention and a feed-forward network, with a cache for ``batch`` sequences."""

    keys: Tensor  # (batch, heads, context, head width)
    values: Tensor

    def __init__(self, shape: DecoderShape, batch: int) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(shape.width),
            nn.Linear(shape.width, 4 * shape.width),
            nn.GELU(),
            nn.Linear(4 * shape.width, shape.width),
        )
        cache = (batch, shape.heads, shape.context, shape.width // shape.heads)
        self.register_buffer("keys", torch.randn(cache))  # not zeros: attention reads what was never written, too
        self.register_buffer("values", torch.randn(cache))

    def split(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (batch, heads, time, head width) each, of hidden (batch, time, width)."""
        batch, time, width = hidden.shape
        qkv = self.qkv(self.norm(hidden)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def attend(self, hidden: Tensor, query: Tensor, visible: Tensor) -> Tensor:
        """The block's output where ``query`` attends to the cache; ``visible`` is a mask over it."""
        return self.join(
            hidden, nn.functional.scaled_dot_product_attention(query, self.keys, self.values, attn_mask=visible)
        )

    def join(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The block's output, (batch, time, width), from what the heads attended to."""
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(hidden.shape))
        return hidden + self.feed_forward(hidden)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class _CachedBlock(CachedAttention):
    """All sequences are at the same position."""

    def forward(self, hidden: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        query, key, value = self.split(hidden)
        self.keys.index_copy_(2, position, key)
        self.values.index_copy_(2, position, value)
        return self.attend(hidden, query, visible)
