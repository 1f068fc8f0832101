"""Networks of many small ops, which leave most of a GPU idle. Owns layers only: no data, no optimizer, no device."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DlrmShape:
    """A recommender: categorical features through embedding tables, dense ones through a perceptron."""

    tables: int
    rows: int  # of each table
    width: int  # of an embedding
    dense: int  # number of dense features
    bottom: tuple[int, ...]  # hidden layers
    top: tuple[int, ...]


DLRM = DlrmShape(tables=26, rows=100_000, width=64, dense=13, bottom=(512, 256), top=(512, 256))
DLRM_SMALL = DlrmShape(tables=4, rows=50, width=8, dense=5, bottom=(16,), top=(16,))


class Dlrm(nn.Module):
    """Naumov et al. 2019: all embeddings' dot products with each other and with the dense features.

    Gradients of the tables are sparse, as they are in practice: only rows of the batch are updated.
    """

    pairs: Tensor  # (2, number of pairs): which feature interacts with which

    def __init__(self, shape: DlrmShape) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(shape.rows, shape.width, mode="sum", sparse=True) for _ in range(shape.tables)
        )
        self.bottom = _perceptron(shape.dense, *shape.bottom, shape.width)
        self.register_buffer("pairs", torch.tril_indices(shape.tables + 1, shape.tables + 1, offset=-1))
        self.top = _perceptron(shape.width + self.pairs.shape[1], *shape.top, 1)

    def forward(self, dense: Tensor, bags: Tensor) -> Tensor:
        """Dense features (batch, dense) and bags of rows (tables, batch, bag) to one logit each, (batch,)."""
        bottom = torch.relu(self.bottom(dense))
        features = torch.stack([bottom, *(table(bag) for table, bag in zip(self.tables, bags, strict=True))], 1)
        products = torch.bmm(features, features.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        logits: Tensor = self.top(torch.cat([bottom, products], 1)).squeeze(1)
        return logits


def _perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])


class Chain(nn.Module):
    """Narrow residual layers one after the other: hundreds of ops, none of which has anything to do."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) to logits (batch, classes)."""
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) * 0.5
        logits: Tensor = self.head(x)
        return logits
