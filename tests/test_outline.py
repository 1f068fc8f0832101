"""A graph collapsed to rows of modules: folded where they repeat, opened where time goes, few enough to read."""

import pytest

from herald import fake_profiles
from herald.fake_profiles import FakeRun
from herald.graphs import flow
from herald.graphs.build import build
from herald.graphs.outline import Outline, outline


def outline_of(run: FakeRun, most_rows: int = 25) -> Outline:
    return outline(build(run.profile()), most_rows)


def labels(found: Outline) -> list[str]:
    return [f"{row.within}.{row.label}" if row.within else row.label for row in found.rows]


def layered(layers: int) -> FakeRun:
    """Equal layers of two modules and an addition, then a head."""
    run = FakeRun()
    hidden = run.tensor()
    for layer in range(layers):
        run.module = f"layers.{layer}.attention"
        branch = run.op("aten::mm", 90_000, [hidden], flops=5)
        run.module = f"layers.{layer}"
        hidden = run.op("aten::add", 9_000, [hidden, branch])
        run.module = f"layers.{layer}.mlp"
        hidden = run.op("aten::addmm", 90_000, [hidden], flops=7)
    run.module = "head"
    run.op("aten::mm", 90_000, [hidden], flops=9)
    return run


def test_equal_layers_are_one_and_what_a_layer_does_itself_keeps_its_place() -> None:
    found = outline_of(layered(6))
    assert labels(found) == ["layers.0-5.attention", "layers.0-5.add", "layers.0-5.mlp", "head"]
    assert [row.within_repeats for row in found.rows] == [6, 6, 6, 1]
    assert [row.is_module for row in found.rows] == [True, False, True, True]
    assert found.cells[0, "forward"].total_ns == 6 * 90_000


def test_different_layers_are_not_folded() -> None:
    run = FakeRun()
    for layer, self_ns in enumerate((90_000, 90_000, 91_000)):  # the last has another signature
        run.module = f"layers.{layer}"
        run.op("aten::mm", self_ns, [run.tensor()], flops=6)
    assert labels(outline_of(run)) == ["layers.0-1", "layers.2"]


def test_edges_between_rows_are_counted() -> None:
    found = outline_of(layered(6))
    assert found.edges[(0, "forward"), (1, "forward")] == 6
    assert found.edges[(2, "forward"), (0, "forward")] == 5  # to the next layer
    assert found.edges[(2, "forward"), (3, "forward")] == 1


def test_rows_stay_few_by_joining_what_takes_least() -> None:
    found = outline(build(fake_profiles.vgg16()))
    assert labels(found)[:2] == ["0 - 1", "2 - 4"]
    assert labels(found)[-2:] == ["outside modules", "optimizer"]
    assert len(found.rows) <= 25


@pytest.mark.parametrize("most_rows", [1, 2, 5, 12, 25, 60])
@pytest.mark.parametrize("name", ["vgg16", "transformer"])
def test_rows_are_bounded_and_hold_every_node_once(name: str, most_rows: int) -> None:
    graph = build(getattr(fake_profiles, name)())
    found = outline(graph, most_rows)
    assert len(found.rows) <= max(2, most_rows)
    assert sorted(node for row in found.rows for node in row.nodes) == sorted(graph)
    assert sum(cell.total_ns for cell in found.cells.values()) == flow.total_ns(graph)
    assert set(found.cells) >= {place for edge in found.edges for place in edge}


def test_forward_and_backward_of_a_module_share_a_row() -> None:
    found = outline(build(fake_profiles.vgg16()))
    assert {column for place, column in found.cells if place == 0} == {"forward", "backward"}


def test_what_the_model_does_itself_is_known_by_its_class() -> None:
    run = FakeRun()
    for module in ("conv", "Model", "fc", ""):
        run.module = module
        run.op(f"aten::{module.lower() or 'loss'}", 9_000)
    assert labels(outline_of(run)) == ["conv", "model", "fc", "outside modules"]


def test_ops_without_any_module_are_one_row() -> None:
    run = FakeRun()
    run.op("aten::mm", 9_000)
    run.op("aten::mm", 9_000)
    found = outline_of(run)
    assert len(found.rows) == 1
    assert found.rows[0].nodes == (0, 1)
