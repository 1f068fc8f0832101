"""Settings are data; how a process is launched follows from them and nothing else."""

import pytest

from herald import config
from herald.errors import ConfigError
from herald.experiments import settings
from herald.experiments.crew import Pair, launch_for
from herald.experiments.roles import ROLES
from herald.experiments.settings import SETTINGS, Setting
from herald.scheduler import policies


def test_names_are_the_keys() -> None:
    assert all(name == setting.name for name, setting in SETTINGS.items())


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_every_setting_has_its_reference_in_the_same_mps_state(setting: Setting) -> None:
    for role in ROLES:
        reference = settings.alone(role, mps=setting.mps)
        assert (reference.roles, reference.mps, reference.policy) == ((role,), setting.mps, None)


def test_only_mps_settings_touch_mps_variables() -> None:
    for setting in SETTINGS.values():
        assert setting.mps or not setting.trainer_env


def test_choosing_keeps_the_order_in_which_the_references_come_first() -> None:
    chosen = settings.choose(["herald-strict", "timeslice", "alone"], "off")
    assert [setting.name for setting in chosen] == ["alone", "timeslice", "herald-strict"]


@pytest.mark.parametrize(("mps", "states"), [("off", {False}), ("on", {True}), ("both", {False, True})])
def test_all_is_everything_of_the_wanted_mps_states(mps: str, states: set[bool]) -> None:
    assert settings.choose(["all"], mps) == [s for s in SETTINGS.values() if s.mps in states]


def test_an_unknown_setting_names_the_near_one_and_the_allowed() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'herald-strict'\?\): allowed are all, alone"):
        settings.choose(["herald-strikt"], "off")


def test_settings_of_the_other_mps_state_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="--mps both"):
        settings.choose(["mps-pct-50"], "off")


def test_an_unknown_mps_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="off, on, both"):
        settings.choose(["all"], "yes")


def test_without_mps_one_trainer_process_serves_all_settings_of_a_gpu() -> None:
    launches = {launch_for("training", s, "cuda", None) for s in SETTINGS.values() if not s.mps}
    assert len(launches) == 1


def test_under_mps_only_what_is_read_at_start_makes_another_trainer_process() -> None:
    env = {s.name: dict(launch_for("training", s, "cuda", "/pipe").env) for s in SETTINGS.values() if s.mps}
    assert env["mps"]["CUDA_MPS_CLIENT_PRIORITY"] == "0"
    assert env["mps-pct-50"] == env["mps"] | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}
    assert env["mps-priority"] == env["herald-strict-mps"] == env["mps"] | {"CUDA_MPS_CLIENT_PRIORITY": "1"}
    assert all(variables["CUDA_MPS_PIPE_DIRECTORY"] == "/pipe" for variables in env.values())


def test_a_trainer_whose_ops_are_all_heavy_is_a_process_with_such_a_config() -> None:
    setting = settings.get("herald-all-heavy-mps")
    env = dict(launch_for("training", setting, "cuda", "/pipe").env)
    assert config.load(env["HERALD_CONFIG"]).classes.light_percent == 0
    env.pop("HERALD_CONFIG")
    assert env == dict(launch_for("training", settings.get("herald-strict-mps"), "cuda", "/pipe").env)


def test_under_mps_every_trainer_of_herald_but_those_without_classes_is_one_process() -> None:
    launches = {launch_for("training", s, "cuda", "/pipe") for s in SETTINGS.values() if s.mps and s.policy}
    assert len(launches) == 2
    assert all(dict(launch.env)["CUDA_MPS_CLIENT_PRIORITY"] == "1" for launch in launches)


def test_labels_are_short_and_tell_settings_apart() -> None:
    labels = [setting.label for setting in SETTINGS.values()]
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 15
    assert {"strict", "strict-mps", "herald", "herald-mps", "no-space-mps"} <= set(labels)


def test_every_policy_of_a_setting_exists() -> None:
    for setting in SETTINGS.values():
        if setting.policy is not None:
            policies.load(setting.policy)


@pytest.mark.parametrize(("device", "pipe"), [("cpu", None), ("cuda", None), ("cuda", "/pipe")])
def test_one_service_process_serves_all_settings(device: str, pipe: str | None) -> None:
    assert len({launch_for("inference", s, device, pipe) for s in SETTINGS.values()}) == 1


def test_on_a_cpu_only_heralds_trainer_is_in_the_idle_class() -> None:
    idle = {s.name for s in SETTINGS.values() if launch_for("training", s, "cpu", None).idle_class}
    assert idle == {s.name for s in SETTINGS.values() if s.policy is not None}
    for setting in SETTINGS.values():
        for role in ROLES:
            assert dict(launch_for(role, setting, "cpu", None).env)["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_pair_is_a_service_and_a_trainer() -> None:
    assert Pair.parse("transformer+vgg16") == Pair("transformer", "vgg16")
    assert str(Pair.parse("a+b")) == "a+b"


@pytest.mark.parametrize("text", ["vgg16", "a+", "+b", "a+b+c", ""])
def test_a_bad_pair_says_how_it_is_written(text: str) -> None:
    with pytest.raises(ConfigError, match=r"INFERENCE\+TRAINING"):
        Pair.parse(text)
