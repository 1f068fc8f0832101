"""What a person may get wrong when attaching, and what is left behind: nothing."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import herald
from herald import layout
from herald.table import Table


def test_the_public_names_are_sorted_and_exist() -> None:
    assert herald.__all__ == sorted(herald.__all__)
    for name in herald.__all__:
        assert getattr(herald, name) is not None


def test_a_name_that_the_config_does_not_have_is_told(
    tmp_path: Path, domain: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "herald.toml"
    config.write_text(f'domain = "{domain}"\n[jobs.train]\npriority = "low"\nfloor = 0.2\n', encoding="utf-8")
    with herald.attach(priority="low", name="trai", device="cpu", config=config):
        pass
    assert "job 'trai' has no [jobs.trai]" in caplog.text
    assert "did you mean 'train'?" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priority": "urgent"}, r"priority = 'urgent'.*'high'.*'low'"),
        ({}, r"no priority.*'high'.*'low'"),
        ({"priority": "high", "slo": "50"}, r"slo = '50' has no unit.*50ms"),
        ({"priority": "high", "slo": "-5ms"}, r"slo = '-5ms' is not positive"),
        ({"priority": "high", "slo": 0.05}, r"slo = 0.05 is not a duration"),
        ({"priority": "low", "slo": "50ms"}, r"slo = '50ms'.*'low' has no SLO"),
        ({"priority": "high", "slo": {"p99": "5ms"}}, r"slo\.p99 = '5ms'.*latency, ttft, tpot"),
        ({"priority": "high", "slo": {"ttft": 5}}, r"slo\.ttft = 5 is not a duration"),
        ({"priority": "high", "slo": {}}, r"slo = \{\}: promises nothing"),
        ({"priority": "low", "name": 5}, r"name = 5: .*47 bytes"),
        ({"priority": "low", "name": ""}, r"name = '': .*47 bytes"),
        ({"priority": "low", "name": "a\nb"}, r"name = 'a\\nb'.*printable"),
        ({"priority": "low", "name": "x" * 48}, r"47 bytes"),
        ({"priority": "low", "domain": "a/b"}, r"domain = 'a/b'"),
        ({"priority": "low", "model": "resnet"}, r"model = 'resnet'.*torch\.nn\.Module"),
        ({"priority": "low", "device": "tpu"}, r"device = 'tpu'.*'cpu'"),
        ({"priority": "low", "device": "meta"}, r"device = 'meta'"),
        ({"priority": "low", "config": "/nowhere/herald.toml"}, r"/nowhere/herald.toml.*cannot be read"),
        ({"priority": "low", "config": b"/nowhere/herald.toml"}, r"/nowhere/herald.toml.*cannot be read"),
        ({"priority": "low", "config": 5}, r"config = 5 is not a path"),
        ({"priority": "low", "profile": "/nowhere/p.json"}, r"/nowhere/p.json.*cannot be read"),
        ({"priority": "low", "profile": 5}, r"profile = 5 is not a path"),
    ],
)
@pytest.mark.parametrize("disable", ["0", "1"])
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
    domain: str, arguments: dict[str, object], message: str, disable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERALD_DISABLE", disable)
    with pytest.raises(herald.ConfigError, match=message):
        herald.attach(**({"device": "cpu"} | arguments))
    assert domain not in herald.domains.domains() or Table.open(domain).jobs() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_so(domain: str) -> None:
    with pytest.raises(herald.AttachError, match="sees no GPU.*herald doctor"):
        herald.attach(priority="low", device="cuda")


def test_the_config_speaks_where_the_code_is_silent(domain: str, tmp_path: Path) -> None:
    config = tmp_path / "herald.toml"
    config.write_text(f'domain = "{domain}"\n[jobs.chat]\npriority = "high"\nslo = "80ms"\ntarget = 0.95\n')
    with herald.attach(name="chat", device="cpu", config=config) as job:
        stats = job.stats()
        assert (stats.priority, stats.slo_ns, stats.target) == ("high", 80_000_000, 0.95)
    with herald.attach(name="chat", device="cpu", config=config, slo="20ms") as job:
        assert job.stats().slo_ns == 20_000_000


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize(
    ("written", "given", "told"),
    [
        (
            'priority = "high"\nslo = "500ms"',
            {"priority": "low"},
            ["priority = 'low', {file} says 'high'", "slo = none (priority 'low'), {file} says 500 ms"],
        ),
        ('priority = "low"', {"priority": "high", "slo": "5ms"}, ["priority = 'high', {file} says 'low'"]),
        ('slo = "500ms"', {"priority": "high", "slo": "50ms"}, ["slo = 50 ms, {file} says 500 ms"]),
        (
            'slo = { ttft = "200ms", tpot = "30ms" }',
            {"priority": "high", "slo": "50ms"},
            ["slo = 50 ms, {file} says {{ttft: 200 ms, tpot: 30 ms}}"],
        ),
        ('priority = "high"\nslo = "500ms"', {"priority": "high", "slo": "0.5s"}, []),
        ('priority = "high"\nslo = "500ms"', {}, []),
        ("target = 0.9", {"priority": "high", "slo": "50ms"}, []),
    ],
)
def test_what_the_call_overrules_in_the_config_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, written: str, given: dict[str, Any], told: list[str]
) -> None:
    config = tmp_path / "herald.toml"
    config.write_text(f"[jobs.chat]\n{written}\n")
    herald.attach(name="chat", device="cpu", config=config, **given).detach()
    file = f"[jobs.chat] in {config}"
    assert [message.split(": the call wins")[0] for message in caplog.messages if "the call wins" in message] == [
        f"job 'chat': attach says {words.format(file=file)}" for words in told
    ]


def test_a_file_that_is_no_profile_is_one_error_without_a_chain(domain: str, tmp_path: Path) -> None:
    file = tmp_path / "herald.toml"
    file.write_text('policy = "herald"\n')
    with pytest.raises(herald.ConfigError, match=r"herald\.toml' is not whole JSON") as caught:
        herald.attach(priority="low", device="cpu", profile=file)
    assert len("".join(traceback.format_exception(caught.value)).split("Traceback")) == 2


def test_what_a_job_promises_and_is_promised_stands_in_its_row(domain: str, tmp_path: Path) -> None:
    config = tmp_path / "herald.toml"
    config.write_text('[jobs.llm]\nslo = { ttft = "200ms", tpot = "30ms" }\n[jobs.train]\nweight = 3\nfloor = 0.25\n')
    with herald.attach(priority="high", name="llm", device="cpu", config=config) as job:
        stats = job.stats()
        assert (stats.slo_ns, stats.ttft_slo_ns, stats.tpot_slo_ns) == (0, 200_000_000, 30_000_000)
    with herald.attach(priority="high", slo={"latency": "2s", "tpot": "9ms"}, device="cpu") as job:
        stats = job.stats()
        assert (stats.slo_ns, stats.ttft_slo_ns, stats.tpot_slo_ns) == (2 * 10**9, 0, 9_000_000)
    with herald.attach(priority="low", name="train", device="cpu", config=config) as job:
        assert (job.stats().weight, job.stats().floor) == (3.0, 0.25)


def test_a_full_table_is_an_error_and_frees_up_again(domain: str) -> None:
    table = Table.open(domain)
    rows = [table.claim(name="filler", priority="low", device="cpu") for _ in range(layout.MAX_JOBS)]
    with pytest.raises(herald.TableError, match="full: 64 jobs"):
        herald.attach(priority="high", device="cpu")
    table.release(rows[0])
    herald.attach(priority="high", device="cpu").detach()


def test_one_low_priority_job_per_process(domain: str) -> None:
    with herald.attach(priority="low", name="first", device="cpu"):
        with pytest.raises(herald.AttachError, match="'first'"):
            herald.attach(priority="low", name="second", device="cpu")
        assert [job.name for job in Table.open(domain).jobs()] == ["first"]


@pytest.mark.parametrize("disable", ["0", "1"])
def test_a_low_priority_job_serves_no_requests(domain: str, disable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERALD_DISABLE", disable)
    with herald.attach(priority="low", device="cpu") as job:
        for serve in (job.request, lambda: job.step("decode"), lambda: job.queued(0)):
            with pytest.raises(herald.ConfigError, match="'low'.*'high'"):
                serve()


def test_one_rank_of_many_is_refused(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holding one rank back would stall the others' collectives."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    with pytest.raises(herald.AttachError, match="8 ranks"):
        herald.attach(priority="low", device="cpu")


def test_disabled_herald_has_the_same_calls_and_no_effect(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERALD_DISABLE", "1")
    model = torch.nn.Linear(2, 2)
    job = herald.attach(model, priority="high", slo="50ms")
    assert "forward" not in model.__dict__
    with job, job.request(arrival=1.0) as request, job.step("decode"):
        model(torch.randn(1, 2))
        request.first_token()
        request.end(tokens=3)
        job.queued(2)
    assert job.stats().requests_done == 0
    assert str(job.stats()).splitlines() == [
        "Linear (priority high)",
        "  Herald is disabled (HERALD_DISABLE=1): nothing is counted",
    ]
    assert domain not in herald.domains.domains()
    with pytest.raises(herald.ConfigError, match="slo"):  # still checked: the setting is wrong either way
        herald.attach(model, priority="high", slo="50")


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("disable", ["0", "1"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda job: job.begin(slo="junk"), "slo = 'junk'"),
        (lambda job: job.request(arrival=-1.0), r"arrival = -1\.0"),
        (lambda job: job.step("junk"), "kind = 'junk'"),
        (lambda job: job.step("decode", deadline=-1.0), r"deadline = -1\.0"),
        (lambda job: job.queued(-1), "queued = -1"),
        (lambda job: job.save_profile("p.json"), "'high': op costs are learnt"),
    ],
)
def test_a_wrong_call_of_a_service_is_an_error_also_where_herald_is_disabled(
    wrong: Callable[[herald.Job], object], message: str, disable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERALD_DISABLE", disable)
    with (
        herald.attach(priority="high", slo="1s", device="cpu") as job,
        pytest.raises(herald.ConfigError, match=message),
    ):
        wrong(job)


def test_disabled_herald_needs_neither_the_device_nor_that_of_the_profile(
    domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERALD_DISABLE", "1")
    herald.Profile("NVIDIA H9000", None, "99.0", ()).save(tmp_path / "p.json")
    herald.attach(priority="low", device="cuda:63", profile=tmp_path / "p.json")
    assert domain not in herald.domains.domains()


def test_training_is_bit_identical_with_and_without_herald(domain: str) -> None:
    """Time gating changes when ops run, never what they compute."""

    def losses(attach: bool) -> list[float]:
        torch.manual_seed(7)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 8))
        optimizer = torch.optim.Adam(model.parameters())
        x, y = torch.randn(32, 64), torch.randint(0, 8, (32,))
        job = herald.attach(model, priority="low") if attach else None
        out = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            out.append(loss.item())
        if job:
            assert job.stats().gate_points > 0
            job.detach()
        return out

    assert losses(attach=False) == losses(attach=True)


def test_a_process_that_ends_without_detaching_leaves_no_row(domain: str, child) -> None:
    job = child("""
        import herald
        herald.attach(priority="high", name="careless", device="cpu").begin()
        print("attached")
    """)
    job.expect("attached")
    assert job.process.wait(60) == 0
    table = Table.open(domain)
    assert table.jobs() == []
    assert table.gate_words().get(("cpu", layout.CLASS_HEAVY), 0) == 0


def test_without_a_daemon_it_is_said_once(domain: str) -> None:
    script = "import herald\nfor _ in range(3):\n    herald.attach(priority='high', device='cpu').detach()\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, env=os.environ.copy()
    )
    assert done.stderr.count("no daemon in domain") == 1
