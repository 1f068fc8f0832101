"""`herald` as people and scripts meet it: exit codes, clean errors, status, run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from herald import cli, status
from herald.bootstrap import PythonCommand, attached
from herald.errors import ConfigError
from herald.fakes import MemoryTable
from herald.scheduler import policies
from herald.scheduler.snapshot import FREE_PLAN
from herald.table import Table

MS = 1_000_000


@pytest.fixture(autouse=True)
def _own_environment(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["HERALD_DOMAIN"] == domain
    for name in ("HERALD_LOG", "HERALD_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def herald(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "herald", *words], capture_output=True, text=True, check=False)


# ---- the door


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


# ---- status


def render(shown: status.Status) -> str:
    out = StringIO()
    status.render(shown, Console(file=out, width=80))
    return out.getvalue()


def busy_table() -> MemoryTable:
    table = MemoryTable("prod")
    chat = table.add_job(name="chat", slo_ns=50 * MS, slo_met=199, slo_missed=1, open_requests=2, alone_ns=60 * MS)
    table.record(chat, latency_ns=30 * MS, service_ns=60 * MS, count=200)
    vgg = {"gate_points": 10, "gate_waits": 4, "gate_wait_ns": 70 * MS, "sampled_ns": 4, "covered_ns": 3}
    table.add_job(name="vgg16", priority="low", longest_op_ns=2 * MS, **vgg)
    return table


def test_a_domain_in_which_nothing_started_has_a_status(domain: str) -> None:
    assert status.look(domain, 0) == status.Status(domain, exists=False)
    done = herald("status")
    assert done.returncode == 0
    assert f"domain   {domain}" in done.stdout
    assert "daemon   none" in done.stdout
    assert "nothing has started in it; " in done.stdout


def test_a_domain_that_was_named_and_does_not_exist_is_an_error_that_lists_those_that_do(
    domain: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Table.open(domain)
    for words in ([], ["--json"]):
        assert cli.main(["status", "--domain", "nosuch", *words]) == 2
        shown = capsys.readouterr()
        (said,) = shown.err.splitlines()
        assert "--domain nosuch: no daemon and no job has started in it; domains that exist: " in said
        assert domain in said
        assert shown.out == ""
    assert cli.main(["status", "--domain", domain]) == 0
    assert "no jobs" in capsys.readouterr().out


def test_status_json_says_what_the_table_says(domain: str) -> None:
    table = Table.open(domain)
    row = table.claim(name="chat", priority="high", device="cpu", slo_ns=50 * MS)
    table.publish_plan(row, table.job(row).generation, FREE_PLAN.lead_ns, FREE_PLAN.queue_limit)
    shown = json.loads(herald("status", "--json").stdout)
    assert shown["domain"] == domain
    assert shown["daemon"]["state"] == "none"
    (job,) = shown["jobs"]
    assert (job["name"], job["priority"], job["slo_ns"], job["pid"]) == ("chat", "high", 50 * MS, os.getpid())
    assert job["plan"] == "never closes the gate"
    table.release(row)


def test_status_numbers() -> None:
    chat, vgg = status.status_of(busy_table(), 0).jobs
    assert chat.attainment == 0.995
    assert chat.p99_ns is not None
    assert 30 * MS <= chat.p99_ns < 32 * MS
    assert chat.infeasible_below_ns == 62_050_000  # 60 ms alone + 2 ms residual + 50 us
    assert (vgg.coverage, vgg.gate_waits, vgg.gate_wait_ns) == (0.75, 4, 70 * MS)
    assert vgg.plan is None


def test_without_a_daemon_only_plans_that_are_there_are_spoken_of() -> None:
    assert "daemon   none: jobs go on by the plans below\n" in render(status.status_of(busy_table(), 0))
    trainer = MemoryTable("prod")
    trainer.add_job(name="vgg16", priority="low")
    for table in (trainer, MemoryTable("prod")):
        assert "daemon   none\n" in render(status.status_of(table, 0))


def test_names_are_shown_as_they_are() -> None:
    table = MemoryTable()
    names = ("gpt2[/old]:fire:", "run[lr=1e-3]")
    for name, priority in zip(names, ("high", "low"), strict=True):
        table.add_job(name=name, priority=priority, engine=1, ttft_slo_ns=1)
    said = render(status.status_of(table, 0))
    assert all(name in said for name in names)


def test_requests_that_outran_a_hold_and_a_prediction_are_told() -> None:
    table = MemoryTable()
    table.add_job(name="chat", requests_overdue=2, open_requests=1, remaining_ns=0)
    said = render(status.status_of(table, 0))
    assert "2 ran longer than max_hold" in " ".join(said.split())
    assert "0 ns" not in said


def test_status_reads_well_at_80_columns() -> None:
    said = render(status.status_of(busy_table(), 0))
    assert max(len(line) for line in said.splitlines()) <= 80
    for part in ("chat", "50 ms", "99.50%", "vgg16", "70 ms", "75.00%", "cannot be guaranteed"):
        assert part in " ".join(said.split())  # a long sentence may wrap


def engine_table() -> MemoryTable:
    table = MemoryTable("prod")
    promised = {"ttft_slo_ns": 1_200 * MS, "tpot_slo_ns": 10 * MS}
    row = table.add_job(name="llm", device="GPU-12345678-9abc", engine=1, tokens=12_345_678, queued=12, **promised)
    table.row(row).alone_ns = 60 * MS
    table.record(row, latency_ns=3_000 * MS, service_ns=60 * MS, count=100)
    table.record_tokens(row, ttft_ns=1_100 * MS, tpot_ns=20 * MS, count=100)
    return table


def test_an_engine_has_its_times_to_first_token_and_per_token() -> None:
    (llm,) = status.status_of(engine_table(), 0).jobs
    assert (llm.slo_ns, llm.ttft_slo_ns, llm.tpot_slo_ns) == (None, 1_200 * MS, 10 * MS)
    assert llm.ttft_p99_ns is not None
    assert 1_100 * MS <= llm.ttft_p99_ns < 1_180 * MS
    assert llm.tpot_p99_ns is not None
    assert 20 * MS <= llm.tpot_p99_ns < 21.5 * MS
    assert (llm.tokens, llm.queued, llm.infeasible_part) == (12_345_678, 12, "tpot")


def test_the_times_of_an_engine_read_well_at_80_columns() -> None:
    said = render(status.status_of(engine_table(), 0))
    assert max(len(line) for line in said.splitlines()) <= 80
    for part in ("TTFT SLO", "1.2 s", "TPOT SLO", "20.5 ms", "12345678", "ms per output token cannot be guaranteed"):
        assert part in " ".join(said.split())
    assert "TTFT" not in render(status.status_of(busy_table(), 0))


@pytest.mark.parametrize("mps", [0, 1])
def test_a_share_without_mps_is_marked(mps: int) -> None:
    table = MemoryTable()
    table.add_job(name="vgg16", priority="low", sm_total=132, sm_granted=116, mps=mps)
    assert ("vgg16: its share of the SMs isolates nothing without MPS" in render(status.status_of(table, 0))) != mps


def test_a_coverage_that_is_not_known_is_a_dash_and_null() -> None:
    table = MemoryTable()
    table.add_job(name="vgg16", priority="low", gated_ns=3)
    shown = status.status_of(table, 0)
    assert shown.jobs[0].coverage is None
    assert render(shown).split()[-1] == "-"


@pytest.mark.parametrize(("age_ns", "state"), [(50 * MS, "alive"), (5_000 * MS, "stale")])
def test_a_daemon_that_owns_but_does_not_beat_is_stale(age_ns: int, state: str) -> None:
    table = MemoryTable()
    table.claim_daemon(1_000 * MS)
    table.publish_policy("laxity")
    shown = status.status_of(table, 1_000 * MS + age_ns).daemon
    assert (shown.state, shown.policy, shown.pid) == (state, "laxity", os.getpid())
    assert f"{state}" in render(status.Status("x", shown))


# ---- reset


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


# ---- run


@pytest.mark.parametrize(
    ("command", "options", "target"),
    [
        ("python train.py --lr 1", (), ("train.py", "--lr", "1")),
        ("/usr/bin/python3.12 -u train.py", ("-u",), ("train.py",)),
        ("python -X dev -Wignore train.py -m x", ("-X", "dev", "-Wignore"), ("train.py", "-m", "x")),
        ("python -m pkg.train a", (), ("-m", "pkg.train", "a")),
        ("python -um pkg.train", ("-u",), ("-m", "pkg.train")),
        ("python -mpkg.train", (), ("-m", "pkg.train")),
        ("python -c pass a", (), ("-c", "pass", "a")),
        ("python --check-hash-based-pycs=never t.py", ("--check-hash-based-pycs=never",), ("t.py",)),
    ],
)
def test_python_commands_are_understood(command: str, options: tuple[str, ...], target: tuple[str, ...]) -> None:
    words = command.split()
    assert PythonCommand.parse(words) == PythonCommand(words[0], options, target)


def test_a_script_alone_runs_with_this_python() -> None:
    assert PythonCommand.parse(["./train.py", "x"]) == PythonCommand(sys.executable, (), ("./train.py", "x"))


@pytest.mark.parametrize("command", ["ls -l", "python", "python -u", "python -", "pythonic train"])
def test_what_is_no_python_program_cannot_be_attached(command: str) -> None:
    with pytest.raises(ConfigError, match="not a Python program"):
        attached(command.split(), "prod", None)


def test_a_job_is_named_after_its_program() -> None:
    words = attached(["python", "a/train.py", "-x"], "prod", None)
    assert words[1:] == ["-m", "herald.bootstrap", "prod", "train", "a/train.py", "-x"]
    assert attached(["python", "-m", "pkg.mod"], "prod", None)[4] == "pkg.mod"
    assert attached(["python", "-m", "pkg.mod"], "prod", "mine")[4] == "mine"


SCRIPT = """
import json, os, sys
from herald.table import Table
(job,) = Table.open().jobs()
print(json.dumps({
    "argv": sys.argv, "name": __name__, "folder": sys.path[0], "file": sys.modules["__main__"].__file__,
    "job": [job.name, job.priority, job.pid == os.getpid()], "wait": os.environ.get("OMP_WAIT_POLICY"),
    "idle": os.sched_getscheduler(0) == os.SCHED_IDLE,
}))
sys.exit(7)
"""


def test_a_script_runs_as_it_would_alone_but_attached(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = herald("run", "--priority", "low", "--device", "cpu", "--", sys.executable, str(script), "--priority", "x")
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == {
        "argv": [str(script), "--priority", "x"],
        "name": "__main__",
        "folder": str(tmp_path),
        "file": str(script),
        "job": ["train", "low", True],
        "wait": "PASSIVE",
        "idle": True,
    }


def attaching(tmp_path: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """A script under `herald run` that knows Herald."""
    script = tmp_path / "train.py"
    script.write_text("import herald\nfrom herald.table import Table\n" + textwrap.dedent(program))
    return herald("run", "--priority=low", "--device=cpu", "--", sys.executable, str(script))


def test_a_script_that_attaches_itself_is_one_job_and_its_own(tmp_path: Path) -> None:
    done = attaching(
        tmp_path,
        """
        with herald.attach(priority="low", name="mine", device="cpu"):
            print([job.name for job in Table.open().jobs()])
        print(Table.open().jobs())
        """,
    )
    assert (done.returncode, done.stdout) == (0, "['mine']\n[]\n"), done.stderr


def test_where_a_script_cannot_attach_itself_it_is_still_the_job_of_run(tmp_path: Path) -> None:
    done = attaching(
        tmp_path,
        """
        from herald.hooks.trainer import LowJob

        start = LowJob._start

        def fails_once(job):
            LowJob._start = start
            raise herald.AttachError("no")

        LowJob._start = fails_once
        for _ in range(2):
            try:
                herald.attach(priority="low", name="mine", device="cpu")
            except herald.AttachError as error:
                print(error)
            print([job.name for job in Table.open().jobs()])
        """,
    )
    assert (done.returncode, done.stdout) == (0, "no\n['train']\n['mine']\n"), done.stderr


def test_in_another_domain_than_that_of_run_a_script_is_told(domain: str, tmp_path: Path) -> None:
    done = attaching(tmp_path, f"herald.attach(priority='low', device='cpu', domain='{domain}-b').detach()\n")
    assert f"in domain '{domain}-b' and not '{domain}'" in done.stderr
    Table.unlink(f"{domain}-b", force=True)


def test_a_signal_ends_the_program_itself(tmp_path: Path, start: "Callable[..., subprocess.Popen[str]]") -> None:
    script = tmp_path / "train.py"
    script.write_text("print('up', flush=True)\nimport signal\nsignal.pause()\n")
    run = ("-m", "herald", "run", "--priority=low", "--device=cpu", "--")
    program = start(sys.executable, *run, sys.executable, str(script))
    assert program.stdout
    assert program.stdout.readline() == "up\n"
    program.send_signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM


def test_a_service_gets_the_environment_and_attaches_itself(domain: str) -> None:
    done = herald(
        "run", "--priority=high", "--device=cpu", "sh", "-c", 'echo "$HERALD_DOMAIN $OMP_WAIT_POLICY"; exit 5'
    )
    assert (done.returncode, done.stdout) == (5, f"{domain} PASSIVE\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((), "no program"),
        (("--", "ls"), "not a Python program"),
        (("--", "/absent/python3", "train.py"), "cannot start '/absent/python3': No such file"),
        (("--", sys.executable, "absent.py"), "absent.py: no such file"),
    ],
)
def test_a_program_that_cannot_run_is_an_error(command: tuple[str, ...], said: str) -> None:
    done = herald("run", "--priority=low", "--device=cpu", *command)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
