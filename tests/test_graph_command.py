"""`herald graph`: a summary for 80 columns, files for tools, pictures; clear errors for files that are wrong."""

import builtins
import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from herald import cli, fake_profiles
from herald.errors import GraphError
from herald.fake_profiles import FakeRun
from herald.graphs import canvas, files, module_picture, timeline_picture
from herald.graphs.build import build
from herald.graphs.canvas import PictureError
from herald.graphs.timeline_picture import Span, filled
from herald.profiles import Profile

PNG = b"\x89PNG"


@pytest.fixture
def vgg(tmp_path: Path) -> Path:
    path = tmp_path / "vgg16.profile.json"
    fake_profiles.vgg16().save(path)
    return path


def run(*words: object) -> int:
    return cli.main(["graph", *map(str, words)])


def test_it_prints_a_summary_and_writes_everything_beside_the_profile(
    vgg: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(vgg) == 0
    shown = capsys.readouterr().out
    for heading in ("device", "iteration", "graph", "critical path", "width", "classes", "heavy runs", "module"):
        assert f"\n{heading}" in shown
    assert "12.5 ms measured, 12.5 ms predicted (+0.0%)" in shown
    assert "heavy 98.5%, light 1.5%" in shown
    summary = shown[: shown.index("wrote")].splitlines()
    assert all(len(line) <= 80 for line in summary)
    names = {path.name for path in vgg.parent.iterdir()} - {vgg.name}
    assert names == {"vgg16.graphml", "vgg16.graph.json", "vgg16.timeline.png", "vgg16.modules.png"}
    assert all((vgg.parent / name).read_bytes().startswith(PNG) for name in names if name.endswith("png"))


@pytest.mark.parametrize("option", ["--out", "-o"])
def test_the_files_go_where_one_says(option: str, vgg: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert run(vgg, option, out, "--no-picture") == 0
    assert sorted(path.name for path in out.iterdir()) == ["vgg16.graph.json", "vgg16.graphml"]


def test_graphml_and_json_are_the_same_graph(vgg: Path) -> None:
    run(vgg, "--no-picture")
    built = build(Profile.load(vgg))
    from_json = files.read_json(vgg.with_name("vgg16.graph.json"))
    assert dict(from_json.nodes(data=True)) == dict(built.nodes(data=True))
    assert nx.utils.edges_equal(from_json.edges(data=True), built.edges(data=True))
    from_graphml = nx.read_graphml(vgg.with_name("vgg16.graphml"), node_type=int)
    assert from_graphml.number_of_edges() == built.number_of_edges()
    assert from_graphml.nodes[3]["self_ns"] == built.nodes[3]["self_ns"]


def test_a_graph_can_be_looked_at_again(vgg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(vgg, "--no-picture")
    first = capsys.readouterr().out
    assert run(vgg.with_name("vgg16.graph.json")) == 0
    assert capsys.readouterr().out.strip() == first[: first.index("wrote")].strip()


def test_without_matplotlib_the_rest_is_written_and_it_says_how_to_get_it(
    vgg: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_matplotlib(monkeypatch)
    assert run(vgg) == 0
    shown = capsys.readouterr().out
    assert "no picture: matplotlib is not installed: pip install 'herald[experiments]'" in shown
    assert vgg.with_name("vgg16.graphml").exists()
    assert not list(vgg.parent.glob("*.png"))


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def refusing(name: str, *arguments: Any, **how: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *arguments, **how)

    monkeypatch.setattr(builtins, "__import__", refusing)


# Wrong files


def error_of(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(path, "--no-picture") == cli.EXIT_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_truncated_profile_is_refused(vgg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = vgg.read_text()
    vgg.write_text(text[: len(text) // 2])
    assert "is not whole JSON" in error_of(vgg, capsys)


def test_a_profile_with_nan_times_is_refused(vgg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vgg.write_text(vgg.read_text().replace('"self_ns": 160000', '"self_ns": NaN'))
    assert "NaN is not a number that can be measured" in error_of(vgg, capsys)


def test_a_profile_with_a_cycle_is_refused(vgg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(vgg.read_text())
    instances = document["iteration"]["instances"]
    instances[3], instances[9] = instances[9], instances[3]
    vgg.write_text(json.dumps(document))
    assert "would have a cycle" in error_of(vgg, capsys)


def test_a_profile_without_an_iteration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "learnt.json"
    Profile("NVIDIA H200", "580", "2.11", ()).save(path)
    assert "learnt.json': the profile has times of ops but no iteration" in error_of(path, capsys)


def test_a_missing_profile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read: No such file" in error_of(tmp_path / "nothing.json", capsys)


def test_a_profile_of_another_device_is_welcome(tmp_path: Path) -> None:
    path = tmp_path / "far.json"
    some = FakeRun()
    some.op("aten::mm", 9_000)
    some.profile(device="A device that is not here").save(path)
    assert run(path, "--no-picture") == 0


def damaged(vgg: Path, change: str) -> Path:
    """A graph file of which one thing was changed."""
    run(vgg, "--no-picture")
    path = vgg.with_name("vgg16.graph.json")
    document = json.loads(path.read_text())
    edge = document["edges"][0]
    if change == "cycle":
        document["edges"].append(edge | {"source": edge["target"], "target": edge["source"]})
    elif change == "back":
        document["edges"] = [edge | {"source": edge["target"], "target": edge["source"]}]
    elif change == "dangling":
        edge["target"] = 123456
    elif change == "negative":
        document["nodes"][0]["self_ns"] = -1
    elif change == "NaN":
        document["nodes"][0]["self_ns"] = float("nan")
    elif change == "empty":
        document["nodes"] = document["edges"] = []
    elif change == "kind":
        document["nodes"][0]["kind"] = "medium"
    elif change == "field":
        del document["nodes"][0]["op"]
    elif change == "version":
        document["version"] = 99
    path.write_text(json.dumps(document)[: 3000 if change == "truncated" else None])
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cycle", "has a cycle of 2 ops"),
        ("back", "was issued before it"),
        ("dangling", "ends at 123456, which is not a node"),
        ("negative", "self_ns = -1 of node 3 must be a number of at least 0 ns"),
        ("NaN", "NaN is not a number that can be measured"),
        ("empty", "it has no nodes"),
        ("kind", "kind = 'medium' of node 3 must be one of heavy, light, unknown, none"),
        ("field", "KeyError: 'op'"),
        ("truncated", "is not whole JSON"),
        ("version", "its format must be 'herald-graph', version 1"),
    ],
)
def test_a_damaged_graph_is_refused(vgg: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = damaged(vgg, change)
    capsys.readouterr()
    with pytest.raises(GraphError, match=message):
        files.read_json(path)
    assert message in error_of(path, capsys)


def test_a_folder_that_cannot_be_written_is_named(vgg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = vgg.parent / "file"
    blocked.write_text("")
    assert run(vgg, "--out", blocked / "below") == cli.EXIT_ERROR
    assert "choose another folder with --out" in capsys.readouterr().err


# Pictures


def test_columns_of_the_timeline_keep_the_time_of_every_class() -> None:
    spans = [Span(0, 25, "a", "heavy"), Span(25, 60, "b", "light"), Span(90, 91, "c", "heavy")]
    shares = filled(spans, 100, 10)
    assert shares[0].sum() * 10 == pytest.approx(26)
    assert shares[1].sum() * 10 == pytest.approx(35)
    assert shares[0, 2] == pytest.approx(0.5)
    assert shares[:, 6:9].sum() == 0


def test_overlapping_spans_never_fill_more_than_a_column() -> None:
    assert filled([Span(0, 100, "a", "heavy"), Span(0, 100, "b", "light")], 100, 4).sum(axis=0).max() == 1


@pytest.mark.parametrize("host_ns", [8_000, 300_000])
def test_pictures_of_a_graph_bound_by_device_or_host(tmp_path: Path, host_ns: int) -> None:
    profile = fake_profiles.transformer(layers=2, host_ns=host_ns)
    graph = build(profile)
    assert timeline_picture.draw(profile, graph, tmp_path / "t.png").read_bytes().startswith(PNG)
    assert module_picture.draw(graph, tmp_path / "m.png").read_bytes().startswith(PNG)


def test_pictures_of_a_single_op_without_names(tmp_path: Path) -> None:
    some = FakeRun()
    some.op("aten::mm", 1)
    profile = some.profile(workload="")
    timeline_picture.draw(profile, build(profile), tmp_path / "t.png")
    module_picture.draw(build(profile), tmp_path / "m.png")


def test_nothing_drawn_is_cut_at_the_edges_of_the_module_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(canvas, "save", lambda made, path: drawn.append(made) or path)
    for profile in (fake_profiles.vgg16(), fake_profiles.transformer()):
        module_picture.draw(build(profile), tmp_path / "m.png")
        timeline_picture.draw(profile, build(profile), tmp_path / "t.png")
    for made in drawn:
        whole = made.bbox
        for text in made.axes[0].texts:
            box = text.get_window_extent()
            assert whole.x0 <= box.x0, text
            assert box.x1 <= whole.x1, text
            assert whole.y0 <= box.y0, text
            assert box.y1 <= whole.y1, text


def test_no_matplotlib_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    profile = fake_profiles.vgg16()
    graph = build(profile)
    with pytest.raises(PictureError, match="pip install"):
        timeline_picture.draw(profile, graph, tmp_path / "t.png")
    with pytest.raises(PictureError, match="pip install"):
        module_picture.draw(graph, tmp_path / "m.png")


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = FakeRun()
    some.module = "layers[0].$x$"
    some.op("aten::mm", 9_000)
    path = tmp_path / "odd.json"
    some.profile(workload="[bold]x[/bold] $5 $6").save(path)
    assert run(path) == 0
    shown = capsys.readouterr().out
    assert "[bold]x[/bold] $5 $6" in shown
    assert "layers[0].$x$" in shown
