"""herald.toml: what it may say, and how it is told what it may not."""

from pathlib import Path

import pytest

from herald import config
from herald.errors import ConfigError
from herald.slo import Slo

FULL = """
domain = "prod"
policy = "laxity"
[mps]
enabled = true
[limits]
max_hold = "2s"
floor = 0.2
quantum = "1ms"
[jobs.chat]
priority = "high"
slo = "50ms"
target = 0.999
[jobs.llm]
priority = "high"
slo = { ttft = "200ms", tpot = "30ms" }
[jobs.train]
priority = "low"
weight = 3
floor = 0.25
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "herald.toml"
    path.write_text(text)
    return path


def test_every_key_arrives_in_the_unit_of_its_field(tmp_path: Path) -> None:
    read = config.load(write(tmp_path, FULL))
    assert (read.domain, read.policy, read.mps.enabled) == ("prod", "laxity", True)
    assert read.limits == config.Limits(max_hold_ns=2_000_000_000, floor=0.2, quantum_ns=1_000_000)
    assert read.job("chat") == config.JobConfig("chat", priority="high", slo=Slo(50_000_000), target=0.999)
    assert read.job("llm").slo == Slo(ttft_ns=200_000_000, tpot_ns=30_000_000)
    assert read.job("train") == config.JobConfig("train", priority="low", weight=3.0, floor=0.25)


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert config.load(path) == config.Config(source=str(path))


def test_metrics_are_served_where_the_file_says_else_nowhere() -> None:
    assert config.Config().metrics.listen is None
    for text, address in (("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:80", ("::1", 80))):
        assert config.parse({"metrics": {"listen": text}}).metrics.listen == address


def test_a_job_that_the_file_does_not_name_has_the_defaults() -> None:
    assert config.Config().job("anyone") == config.JobConfig("anyone", None, None, 0.99)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("polcy = 'strict'", ["polcy = 'strict'", "did you mean 'policy'", "domain, policy, mps"]),
        ("[jobs.chat]\nslow = '5ms'", ["jobs.chat.slow", "did you mean 'slo'", "priority, slo, target"]),
        ("[jobs.chat]\npriority = 'urgent'", ["jobs.chat.priority = 'urgent'", '"high"', '"low"']),
        ("[jobs.chat]\npriority = 'hihg'", ["did you mean 'high'"]),
        ("[jobs.'']\nslo = '5ms'", ["name = ''", "1 to 47 bytes"]),
        ("[jobs.x]\nslo = '5ms'\nfloor = 0.1", ["jobs.x.floor = 0.1", "priority 'low', which have no SLO"]),
        ("[metrics]\nlisten = ':9464'", ["metrics.listen = ':9464'", '"127.0.0.1:9464"']),
        ("[metrics]\nlisten = 9464", ["metrics.listen = 9464", "HOST:PORT"]),
        ("[metrics]\nlisten = 'localhost:0'", ["from 1 to 65535"]),
        ("[limits]\nquantum = '1us'", ["limits.quantum = '1us'", "'10us'", "'100ms'"]),
        ("[jobs.chat]\nslo = '50'", ["jobs.chat.slo = '50'", "no unit", "'50ms'"]),
        ("[jobs.chat]\nslo = 50", ["jobs.chat.slo = 50", "in quotes with a unit"]),
        ("[jobs.chat]\nslo = '-50ms'", ["jobs.chat.slo = '-50ms'", "not positive"]),
        ("[jobs.chat]\npriority = 'low'\nslo = '5ms'", ["jobs.chat.slo = '5ms'", "has no SLO"]),
        ("[jobs.chat]\nslo = { ttft = '50' }", ["jobs.chat.slo.ttft = '50'", "no unit", "'50ms'"]),
        ("[jobs.chat]\nslo = { ttft = 50 }", ["jobs.chat.slo.ttft = 50", "not a duration", "'50ms'"]),
        ("[jobs.chat]\nslo = { tfft = '50ms' }", ["jobs.chat.slo.tfft = '50ms'", "latency, ttft, tpot"]),
        ("[jobs.chat]\nslo = {}", ["jobs.chat.slo = {}", "promises nothing", "latency, ttft, tpot"]),
        ("[jobs.chat]\npriority = 'low'\nslo = { ttft = '5ms' }", ["jobs.chat.slo", "has no SLO"]),
        ("[jobs.t]\nweight = 0", ["jobs.t.weight = 0", "0.001 to 1000"]),
        ("[jobs.t]\nweight = '2'", ["jobs.t.weight = '2'", "a number"]),
        ("[jobs.t]\nfloor = 0.95", ["jobs.t.floor = 0.95", "0 to 0.9"]),
        ("[jobs.t]\npriority = 'high'\nweight = 2", ["jobs.t.weight = 2", "'low'"]),
        ("[jobs.t]\npriority = 'high'\nfloor = 0.2", ["jobs.t.floor = 0.2", "'low'"]),
        ("[jobs.chat]\ntarget = 1", ["jobs.chat.target = 1", "at most 0.999999"]),
        ("[jobs.chat]\ntarget = 0.9999999", ["at most 0.999999"]),
        ("jobs = 3", ["jobs = 3", "a table"]),
        ("[jobs]\nchat = 'high'", ["jobs.chat = 'high'", "[jobs.chat]"]),
        ("[mps]\nenabled = 'yes'", ["mps.enabled = 'yes'", "true or false"]),
        ("[limits]\nmax_hold = '10'", ["limits.max_hold = '10'", "no unit"]),
        ("[limits]\nmax_hold = '1ns'", ["limits.max_hold = '1ns'", "from '100ms'"]),
        ("[limits]\nfloor = 0.6", ["limits.floor = 0.6", "0 to 0.5"]),
        ("[limits]\nfloor = nan", ["limits.floor = nan"]),
        ("[limits]\nfloor = true", ["limits.floor = True"]),
        ("[classes]\nlight = 5", ["classes.light = 5", '"0%" to "100%"']),
        ("[classes]\nlight = 'five%'", ["classes.light = 'five%'", '"10%"']),
        ("[classes]\nlight = '101%'", ["classes.light = '101%'"]),
        ("domain = 'a b'", ["domain = 'a b'", "letters, digits"]),
        ("policy = 3", ["policy = 3", "in quotes"]),
        ("domain = 1 2", ["not valid TOML", "line 1"]),
    ],
)
def test_a_wrong_file_names_file_key_value_and_what_is_allowed(tmp_path: Path, text: str, said: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    for part in [str(path), *said]:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read \(No such file"):
        config.load(tmp_path / "absent.toml")


def test_a_binary_file_is_not_taken_for_toml(tmp_path: Path) -> None:
    path = tmp_path / "herald.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(path)


def test_a_domain_is_chosen_by_option_then_file_then_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERALD_DOMAIN", "from-env")
    monkeypatch.delenv("HERALD_CONFIG", raising=False)
    assert config.choose_domain(None) == "from-env"
    monkeypatch.setenv("HERALD_CONFIG", str(write(tmp_path, "domain = 'from-file'")))
    assert config.choose_domain(None) == "from-file"
    assert config.choose_domain("given") == "given"
    assert config.choose_domain(None, config.Config()) == "from-env"
    with pytest.raises(ConfigError, match="--domain = 'a b'"):
        config.choose_domain("a b")
