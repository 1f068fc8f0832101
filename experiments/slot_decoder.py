"""A decoder-only Transformer whose key/value cache has slots: what continuous batching needs. Owns layers only.

Sequences of any length lie side by side, one per slot, each with a position of its own; a slot is taken again once its
sequence is done. Greedy, so that what is written follows from the prompt alone, whoever is beside it.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from herald.experiments.language_models import CachedAttention, DecoderShape


class SlotDecoder(nn.Module):
    """State (tokens, lengths, caches) is updated in place."""

    tokens: Tensor  # (slots,) the newest token of each sequence
    lengths: Tensor  # (slots,) how many keys and values it has in the cache
    places: Tensor  # (context,) 0, 1, 2 ...

    def __init__(self, shape: DecoderShape, num_slots: int) -> None:
        super().__init__()
        self.shape = shape
        self.num_slots = num_slots
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(_SlotBlock(shape, num_slots) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.register_buffer("tokens", torch.zeros(num_slots, dtype=torch.long))
        self.register_buffer("lengths", torch.zeros(num_slots, dtype=torch.long))
        self.register_buffer("places", torch.arange(shape.context))

    def prefill(self, slots: Tensor, prompts: Tensor, lengths: Tensor) -> Tensor:
        """Take ``slots`` (n,) for ``prompts`` (n, longest), padded, of ``lengths`` (n,); their first tokens, (n,)."""
        places = self.places[: prompts.shape[1]]
        hidden = self.embedding(prompts) + self.positions(places)
        for block in self._typed_blocks():
            hidden = block.prefill(hidden, slots)
        last = hidden[torch.arange(len(slots), device=slots.device), lengths - 1]
        first = self.head(self.norm(last)).argmax(-1)
        self.tokens[slots] = first
        self.lengths[slots] = lengths
        return first  # type: ignore[no-any-return]  # nn.Module.__call__ is Any

    def decode(self) -> Tensor:
        """One more token for every slot, (slots,). A slot without a sequence writes nonsense that nobody reads."""
        at = self.lengths.clamp(max=self.shape.context - 1)
        hidden = (self.embedding(self.tokens) + self.positions(at)).unsqueeze(1)
        visible = (self.places <= at[:, None]).view(self.num_slots, 1, 1, -1)
        for block in self._typed_blocks():
            hidden = block.decode(hidden, at, visible)
        self.tokens.copy_(self.head(self.norm(hidden)).squeeze(1).argmax(-1))
        self.lengths.copy_(at + 1)
        return self.tokens

    def _typed_blocks(self) -> "Iterable[_SlotBlock]":
        return cast("Iterable[_SlotBlock]", self.blocks)  # a ModuleList knows only of modules


class _SlotBlock(CachedAttention):
    """Every sequence is in a slot, at a position of its own."""

    def prefill(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """Hidden (n, time, width) of prompts; what pads them is cached, too, until decoding overwrites it."""
        query, key, value = self.split(hidden)
        time = hidden.shape[1]
        self.keys[slots, :, :time] = key
        self.values[slots, :, :time] = value
        return self.join(hidden, nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True))

    def decode(self, hidden: Tensor, at: Tensor, visible: Tensor) -> Tensor:
        """Hidden (slots, 1, width) of the newest tokens, whose keys and values go to ``at`` (slots,)."""
        query, key, value = self.split(hidden)
        every = torch.arange(len(at), device=at.device)
        self.keys[every, :, at] = key.squeeze(2)
        self.values[every, :, at] = value.squeeze(2)
        return self.attend(hidden, query, visible)
