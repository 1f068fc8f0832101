"""The graph of what a real model does on this CPU: recorded, built, collapsed. No times are looked at."""

from itertools import pairwise

import networkx as nx
import pytest
import torch
from torch import nn

from herald.graphs.build import build
from herald.graphs.outline import outline
from herald.hooks.profiler import profile
from herald.profiles import Profile


class Residual(nn.Module):
    """Convolution, normalisation, and the input added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(x))
        return y.add_(x).relu_()


@pytest.fixture(scope="module")
def trained() -> Profile:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *(Residual() for _ in range(3)), nn.Flatten(), nn.LazyLinear(4)
    )
    inputs, targets = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    model(inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()  # torch
        optimizer.step()

    return profile(step, model=model, warmup=2, iterations=3)


def convolutions(graph: "nx.DiGraph[int]", phase: str) -> list[int]:
    """The node of each convolution that has its FLOPs: which of its nested ops that is depends on the machine."""
    modules = {"0", "1.conv", "2.conv", "3.conv"}
    facts = graph.nodes
    return [
        n for n in sorted(graph) if facts[n]["phase"] == phase and facts[n]["module"] in modules and facts[n]["flops"]
    ]


def test_every_op_that_works_is_on_the_way_from_the_input_to_the_update(trained: Profile) -> None:
    graph = build(trained)
    forward, backward = convolutions(graph, "forward"), convolutions(graph, "backward")
    assert len(forward) == len(backward) == 4
    assert all(nx.has_path(graph, early, late) for early, late in pairwise([*forward, *backward]))
    updates = {n for n in graph if graph.nodes[n]["phase"] == "optimizer"}
    assert all(updates & nx.descendants(graph, gradient) for gradient in backward)


def test_an_update_waits_for_all_that_read_the_weight(trained: Profile) -> None:
    graph = build(trained)
    for node in convolutions(graph, "forward"):
        waiting = [n for n in graph.successors(node) if "war" in graph.edges[node, n]["dependency"]]
        assert any(graph.nodes[n]["phase"] == "optimizer" for n in waiting)


def test_it_collapses_to_its_modules(trained: Profile) -> None:
    found = outline(build(trained))
    shown = [f"{row.within}.{row.label}".strip(".") for row in found.rows if row.is_module]
    assert shown[0] == "0"
    assert "1-3.conv" in shown or "1-3" in shown
    assert shown[-1] == "5"
    assert [row.label for row in found.rows if not row.is_module][-2:] == ["outside modules", "optimizer"]
