"""The settings under comparison, as data: who runs, with or without MPS, in which environment, under which policy.

A setting says nothing about workloads, rates or durations. Adding one is adding a line to SETTINGS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from herald.errors import ConfigError
from herald.experiments.roles import ROLES, Role

MpsChoice = Literal["on", "off", "both"]
MPS_CHOICES: Mapping[str, tuple[bool, ...]] = {"off": (False,), "on": (True,), "both": (False, True)}

ALL_HEAVY = Path(__file__).resolve().parent / "all_heavy.toml"
_BOTH = ROLES
_INFERENCE: tuple[Role, ...] = ("inference",)
_TRAINING: tuple[Role, ...] = ("training",)


@dataclass(frozen=True)
class Setting:
    """One way of sharing a device."""

    name: str
    summary: str
    mps: bool = False
    roles: tuple[Role, ...] = _BOTH
    trainer_env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    policy: str | None = None  # with its arguments, as in "reserve:16"; None: Herald takes no part
    uses_slo: bool = False  # what it does depends on the SLO, and on what was learnt before

    @property
    def family(self) -> str:
        """The name without its MPS state: what is compared across states."""
        return self.name.removesuffix("-mps")

    @property
    def label(self) -> str:
        """The name in tables, where everything with a policy is Herald's."""
        return _LABELS.get(self.name) or self.name.removeprefix("herald-")


_LABELS = MappingProxyType(  # "timeslice" is the driver's; the policy of that name takes turns by its own clock
    {"herald-mps": "herald-mps", "herald-timeslice": "slices", "herald-timeslice-mps": "slices-mps"}
)
_NO_CLASSES = MappingProxyType({"HERALD_CONFIG": str(ALL_HEAVY)})
ABLATED = ("space", "time", "laxity", "feedback")  # the controller's parts, each of which "herald:no-PART" leaves out


def _policy(name: str, policy: str, *, mps: bool, uses_slo: bool = False, note: str = "") -> Setting:
    return Setting(
        name=f"{name}-mps" if mps else name,
        summary=f"Herald, policy {policy}{note}",
        mps=mps,
        policy=policy,
        uses_slo=uses_slo,
    )


def _herald(policy: str, *, mps: bool, uses_slo: bool = False) -> Setting:
    return _policy(f"herald-{policy}", policy, mps=mps, uses_slo=uses_slo)


def _without_classes(name: str, policy: str, *, uses_slo: bool = False) -> Setting:
    """What the classes are compared with. Its trainer is another process: classes belong to a process."""
    return Setting(
        name=name,
        summary=f"Herald, policy {policy}, every op of the trainer heavy",
        mps=True,
        trainer_env=_NO_CLASSES,
        policy=policy,
        uses_slo=uses_slo,
    )


def _percentage(percent: int) -> Setting:
    return Setting(
        name=f"mps-pct-{percent}",
        summary=f"MPS, trainer on {percent} % of the SMs",
        mps=True,
        trainer_env=MappingProxyType({"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent)}),
    )


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("alone", "inference alone", roles=_INFERENCE),
        Setting("train-alone", "training alone", roles=_TRAINING),
        Setting("timeslice", "default time slicing"),
        _herald("strict", mps=False),
        _herald("laxity", mps=False, uses_slo=True),
        _herald("free", mps=False),
        _policy("herald-timeslice", "timeslice:5ms", mps=False),
        _policy("herald", "herald", mps=False, uses_slo=True),
        Setting("alone-mps", "inference alone, under MPS", mps=True, roles=_INFERENCE),
        Setting("train-alone-mps", "training alone, under MPS", mps=True, roles=_TRAINING),
        Setting("mps", "MPS", mps=True),
        Setting(
            "mps-priority",
            "MPS, trainer at low client priority",
            mps=True,
            trainer_env=MappingProxyType({"CUDA_MPS_CLIENT_PRIORITY": "1"}),
        ),
        _percentage(25),
        _percentage(50),
        _percentage(75),
        _policy("reserve-16", "reserve:16", mps=True),
        _policy("reserve-32", "reserve:32", mps=True),
        _herald("strict", mps=True),
        _herald("laxity", mps=True, uses_slo=True),
        _herald("free", mps=True),
        _policy("herald-timeslice", "timeslice:5ms", mps=True),
        _without_classes("herald-all-heavy-mps", "strict"),
        _policy("tgs", "tgs", mps=True, note=", re-implemented from its paper's rules"),
        _policy("orion", "orion", mps=True, note=", re-implemented from its paper's rules"),
        _policy("herald", "herald", mps=True, uses_slo=True),
        *(_policy(f"herald-no-{part}", f"herald:no-{part}", mps=True, uses_slo=True) for part in ABLATED),
        _without_classes("herald-no-classes-mps", "herald", uses_slo=True),
    )
}


def get(name: str) -> Setting:
    """The setting of that name. Raises ConfigError naming those that exist."""
    if name not in SETTINGS:
        near = get_close_matches(name, SETTINGS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"setting = {name!r}{hint}: allowed are all, {', '.join(SETTINGS)}")
    return SETTINGS[name]


def choose(names: Sequence[str], mps: str) -> list[Setting]:
    """The named settings ("all" is every one) of the wanted MPS states, in the order of SETTINGS: alone first.

    Raises ConfigError for an unknown name or state, and where nothing is left.
    """
    if mps not in MPS_CHOICES:
        raise ConfigError(f"mps = {mps!r}: allowed are {', '.join(MPS_CHOICES)}")
    wanted = SETTINGS if "all" in names else {name: get(name) for name in names}
    chosen = [s for s in SETTINGS.values() if s.name in wanted and s.mps in MPS_CHOICES[mps]]
    if not chosen:
        raise ConfigError(
            f"settings = {', '.join(names)} with mps = {mps!r}: none of them runs in that MPS state; "
            "choose others or --mps both"
        )
    return chosen


def alone(role: Role, *, mps: bool) -> Setting:
    """The reference of a role in an MPS state."""
    return next(s for s in SETTINGS.values() if s.roles == (role,) and s.mps == mps)
