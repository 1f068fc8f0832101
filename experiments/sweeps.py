"""The sweeps that have a command of their own, as data: which pairs and settings each compares.

Free of torch and of measuring: a command line is parsed against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

STATICS = (  # that nobody adjusts while the jobs run
    "timeslice",
    "mps",
    "mps-priority",
    "mps-pct-25",
    "mps-pct-50",
    "mps-pct-75",
    "reserve-16-mps",
    "reserve-32-mps",
    "herald-strict",
    "herald-strict-mps",
)
MPS_SWEEP = ("mps-priority", "mps-pct-25", "mps-pct-50", "mps-pct-75")  # "tuned MPS" is the best of these
PLAIN_MPS = ("mps", *MPS_SWEEP)
STRICT = ("herald-strict", "herald-strict-mps")
CONTROLLER = ("herald", "herald-mps")
ABLATIONS = tuple(f"herald-no-{part}-mps" for part in ("classes", "space", "time", "laxity", "feedback"))
ALONE = ("alone", "train-alone")
CPU_PAIR = "cpu-transformer+cpu-vgg"
STEPS_PAIR = "transformer+vgg16"
CROWD_SERVICES = ("transformer", "graph-decode", "eager-decode")
CROWD_TRAINERS = ("vgg16", "rnnlm", "resnet50")
CPU_SERVICES = ("cpu-transformer", "cpu-decode", "cpu-decode")
CPU_TRAINERS = ("cpu-vgg", "cpu-rnnlm", "cpu-resnet")


@dataclass(frozen=True)
class Template:
    """A sweep before its options."""

    kind: str  # of its rows, and of its command
    summary: str
    pairs: tuple[str, ...]
    settings: tuple[str, ...]
    slo_factors: tuple[float, ...]
    seconds: float
    repeats: int
    load: float | None = None
    rate_hz: float | None = None


FRONTIER = Template(
    kind="frontier",
    summary="pairs x SLOs against every static setting",
    pairs=(
        "transformer+vgg16",
        "graph-decode+vgg16",
        "eager-decode+resnet50",
        "eager-decode+rnnlm",
        "resnet50-b4+gpt2",
        "bert+dlrm",
    ),
    settings=(*ALONE, "alone-mps", "train-alone-mps", *STATICS, *CONTROLLER),
    slo_factors=(1.1, 1.5, 2.0),
    seconds=12.0,
    repeats=3,
    load=0.4,
)
POSTER = Template(
    kind="poster",
    summary="the poster's two figures: alone, tuned MPS, Herald",
    pairs=("transformer+rnnlm", "transformer+vgg16"),
    settings=(*ALONE, *PLAIN_MPS, *CONTROLLER),
    slo_factors=(1.5,),
    seconds=30.0,
    repeats=1,
    rate_hz=10.0,
)
ABLATION = Template(
    kind="ablation",
    summary="the whole controller against the same without each of its parts",
    pairs=("eager-decode+resnet50", "transformer+vgg16"),
    settings=(*ALONE, "alone-mps", "herald-strict-mps", "herald-mps", *ABLATIONS),
    slo_factors=(1.5,),
    seconds=12.0,
    repeats=2,
    load=0.4,
)
TEMPLATES: Mapping[str, Template] = {template.kind: template for template in (FRONTIER, POSTER, ABLATION)}
