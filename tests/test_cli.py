"""`herald` as people and scripts meet it: help, clean errors, exit codes; `herald reset`."""

from pathlib import Path

import pytest

from herald import cli, status
from herald.scheduler import policies
from herald.table import Table
from tests.commands import herald

pytestmark = pytest.mark.usefixtures("domain")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command.name in said


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_its_own_help(command: cli.Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command.name, "--help"])
    assert left.value.code == 0
    assert f"herald {command.name}" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["stauts"])
    assert left.value.code == 2
    assert "invalid choice: 'stauts'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "run --priority low --nmae x -- python t.py",
            "herald run: error: unrecognized arguments: --nmae (did you mean '--name'?)",
        ),
        ("status --jsn=1", "herald status: error: unrecognized arguments: --jsn=1 (did you mean '--json'?)"),
        ("experiment frontier --sedes=3", "herald experiment frontier: error: unrecognized arguments: --sedes=3 (did"),
        ("status now", "herald status: error: unrecognized arguments: now; see `herald status --help`"),
        ("--loud status", "herald: error: unrecognized arguments: --loud; see `herald --help`"),
    ],
)
def test_an_unknown_word_is_refused_by_the_command_that_does_not_know_it(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words.split())
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.startswith(f"usage: {said.partition(':')[0]} ")


def test_an_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["daemon", "--policy", "lax"]) == 2
    said = capsys.readouterr().err
    allowed = ", ".join(policies.names())
    assert said == f"herald: error: --policy = 'lax': allowed are {allowed} (did you mean 'laxity'?)\n"


def test_debug_shows_where_an_error_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERALD_LOG", "debug")
    assert cli.main(["status", "--domain", "not a name"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("herald: error: --domain = 'not a name'")


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "look", interrupted)
    assert cli.main(["status"]) == 130


def test_a_policy_that_the_config_misspells_is_found_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "herald.toml"
    path.write_text("policy = 'laxty'")
    assert cli.main(["daemon", "--config", str(path)]) == 2
    assert f"config {path}: policy = 'laxty'" in capsys.readouterr().err


def test_reset_removes_an_empty_domain(domain: str) -> None:
    Table.open(domain)
    assert herald("reset").stdout == f"domain {domain}: removed\n"
    assert herald("reset").stdout == f"domain {domain}: there was no table\n"


def test_reset_of_a_domain_in_use_needs_force(domain: str) -> None:
    table = Table.open(domain)
    row = table.claim(name="chat", priority="high", device="cpu")
    refused = herald("reset")
    assert refused.returncode == 2
    assert "is in use" in refused.stderr
    assert herald("reset", "--force").returncode == 0
    table.release(row)
