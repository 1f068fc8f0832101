"""The file of op costs: what is written can be read, and nothing else."""

import json
from pathlib import Path

import pytest

from herald import ConfigError
from herald.costs import OpCost, OpCosts

COSTS = OpCosts("NVIDIA H200", "2.11.0", (OpCost("aten::mm(Float[2, 2])", 0xFEED, 1234, 8, "heavy"),))


def read(path: Path) -> OpCosts:
    return OpCosts.load(path, device="NVIDIA H200", torch="2.11.0")


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    COSTS.save(path)
    assert read(path) == COSTS
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize(("field", "value"), [("device", "NVIDIA A100"), ("torch", "2.6.0"), ("version", 99)])
def test_costs_of_another_device_or_version_are_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "p.json"
    COSTS.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigError, match=f"made for {field} {value!r}"):
        read(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("1234", "NaN"),
        lambda text: text.replace("1234", "-1"),
        lambda text: text.replace('"numel"', '"number"'),
        lambda text: text.replace("herald-profile", "other"),
        lambda text: text.replace("000000000000feed", "xyz"),
    ],
)
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, damage) -> None:
    path = tmp_path / "p.json"
    COSTS.save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ConfigError, match="profile = .*p.json"):
        read(path)


def test_an_unwritable_folder_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        COSTS.save("/nowhere/p.json")
