"""The LLM server: what it writes, in which order it serves, and what it tells Herald of it."""

import io
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from herald.errors import ConfigError
from herald.experiments import llm_experiment
from herald.experiments.arrivals import Poisson
from herald.experiments.language_models import DecoderShape
from herald.experiments.llm_experiment import Options, Promise
from herald.experiments.llm_server import Arrived, Engine, Lengths, Prompt, Schedule, Served
from herald.experiments.llm_worker import LlmSession
from herald.experiments.slot_decoder import SlotDecoder

SHAPE = DecoderShape(width=16, layers=2, heads=2, vocabulary=40, context=16)


class FakeRequest:
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def first_token(self) -> None:
        self.log.append(("first", self.name))

    def end(self, tokens: int | None = None) -> None:
        self.log.append(("end", self.name, tokens))


class FakeJob:
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def begin(self, *, arrival: float | None = None) -> FakeRequest:
        return FakeRequest(f"{arrival:g}", self.log)

    def queued(self, count: int) -> None:
        self.log.append(("queued", count))

    @contextmanager
    def step(self, kind: str) -> Any:
        self.log.append(kind)
        yield
        self.log.append("enqueued")


class FakeModel:
    """An iteration takes 10 ms, a prefill 100 ms."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.now_s = 0.0
        self.prefills: list[tuple[list[int], list[int]]] = []

    def prefill(self, slots: Sequence[int], prompt_lengths: Sequence[int]) -> Callable[[], None]:
        self.prefills.append((list(slots), list(prompt_lengths)))
        return lambda: self.pass_s(0.1)

    def decode(self) -> Callable[[], None]:
        return lambda: self.pass_s(0.01)

    def pass_s(self, seconds: float) -> None:
        self.now_s = round(self.now_s + seconds, 6)


class FakeFrontEnd:
    """Whose clock is the model's."""

    def __init__(self, prompts: Sequence[Prompt], model: FakeModel, job: FakeJob | None) -> None:
        self.prompts, self.model, self.job = list(prompts), model, job

    def take(self, *, wait: bool) -> list[Arrived]:
        if wait and self.prompts:
            self.model.now_s = max(self.model.now_s, self.prompts[0].arrival_s)
        taken = [p for p in self.prompts if p.arrival_s <= self.model.now_s]
        self.prompts = self.prompts[len(taken) :]
        return [Arrived(p, self.job.begin(arrival=p.arrival_s) if self.job else None) for p in taken]


def served(prompts: Sequence[Prompt], num_slots: int, job: FakeJob | None = None) -> tuple[list[Served], FakeModel]:
    model = FakeModel(num_slots)
    engine = Engine(model, job, clock_s=lambda: model.now_s)
    return engine.serve(FakeFrontEnd(prompts, model, job), start_s=0.0), model


# The model ------------------------------------------------------------------------------------------------------------


def decoder(num_slots: int = 3) -> SlotDecoder:
    torch.manual_seed(0)
    return SlotDecoder(SHAPE, num_slots).eval()


def without_cache(model: SlotDecoder, prompt: list[int], count: int) -> list[int]:
    """The same greedy tokens by reading everything again for each."""
    text = list(prompt)
    for _ in range(count):
        fresh = model.prefill(torch.tensor([0]), torch.tensor([text]), torch.tensor([len(text)]))
        text.append(int(fresh))
    return text[len(prompt) :]


@torch.no_grad()
def test_tokens_are_those_of_a_model_without_a_cache_whoever_is_beside() -> None:
    """Prompts of several lengths in one prefill, then one that joins later in another slot."""
    model, prompts = decoder(), [[3, 1, 4, 1, 5], [9, 2]]
    expected = [without_cache(model, prompt, 5) for prompt in (*prompts, [6, 5, 3])]
    padded = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0]])
    written = [[int(t)] for t in model.prefill(torch.tensor([2, 0]), padded, torch.tensor([5, 2]))]
    for _ in range(2):
        tokens = model.decode()
        written[0].append(int(tokens[2]))
        written[1].append(int(tokens[0]))
    written.append([int(model.prefill(torch.tensor([1]), torch.tensor([[6, 5, 3]]), torch.tensor([3])))])
    for _ in range(2):
        tokens = model.decode()
        for text, slot in zip(written, (2, 0, 1), strict=True):
            text.append(int(tokens[slot]))
    assert written[0] == expected[0] and written[1] == expected[1]
    assert written[2] == expected[2][:3]


@torch.no_grad()
def test_a_slot_can_run_over_without_harm_to_others() -> None:
    """One that nobody reads any more goes on to be decoded until it is taken again."""
    model = decoder(num_slots=2)
    for _ in range(SHAPE.context + 3):
        model.decode()
    assert int(model.lengths.max()) == SHAPE.context
    model.prefill(torch.tensor([0]), torch.tensor([[7, 8]]), torch.tensor([2]))
    assert model.lengths.tolist() == [2, SHAPE.context]


# The engine -----------------------------------------------------------------------------------------------------------


def test_requests_join_and_leave_between_iterations() -> None:
    """The second joins while the first decodes: one prefill of 100 ms, then both get a token per 10 ms."""
    found, model = served([Prompt(0.0, 5, 4), Prompt(0.105, 7, 2)], num_slots=2)
    assert model.prefills == [([0], [5]), ([1], [7])]
    first, second = sorted(found, key=lambda s: s.arrival_s)
    assert (first.first_token_s, first.done_s, first.tokens) == (0.1, pytest.approx(0.23), 4)
    assert (second.first_token_s, second.done_s, second.tokens) == (pytest.approx(0.21), pytest.approx(0.22), 2)
    assert second.ttft_ms == pytest.approx(105)
    assert first.tpot_ms == pytest.approx(130 / 3)


def test_who_finds_no_slot_waits_and_herald_is_told_how_many_do() -> None:
    job = FakeJob()
    found, model = served([Prompt(0.0, 5, 2), Prompt(0.0, 6, 1), Prompt(0.0, 7, 1)], num_slots=1, job=job)
    assert [slots for slots, _ in model.prefills] == [[0], [0], [0]]
    assert [entry for entry in job.log if entry[0] == "queued"] == [("queued", 2), ("queued", 1), ("queued", 0)]
    assert len(found) == 3


def test_herald_hears_of_steps_first_tokens_and_ends_in_order() -> None:
    """A step is over once it is enqueued; the first token is told when the host has it."""
    job = FakeJob()
    served([Prompt(0.25, 5, 2)], num_slots=2, job=job)
    assert job.log == [
        "prefill",
        "enqueued",
        ("first", "0.25"),
        "decode",
        "enqueued",
        ("end", "0.25", 2),
    ]


def test_a_request_of_one_token_has_no_time_per_token() -> None:
    (only,), _ = served([Prompt(0.0, 5, 1)], num_slots=2)
    assert only.tpot_ms is None and only.done_s == only.first_token_s


def test_an_idle_engine_waits_for_the_next_request() -> None:
    found, _ = served([Prompt(0.0, 5, 1), Prompt(2.0, 5, 1)], num_slots=2)
    assert [s.first_token_s for s in found] == [0.1, 2.1]


def test_no_request_is_served_as_such() -> None:
    assert served([], num_slots=2)[0] == []


def test_the_front_end_tells_herald_of_each_with_its_scheduled_arrival() -> None:
    job = FakeJob()
    schedule = Schedule([Prompt(0.0, 5, 1), Prompt(1e-3, 5, 1)], 100.0, job)
    names = []
    while taken := schedule.take(wait=True):
        names += [arrived.told.name for arrived in taken if isinstance(arrived.told, FakeRequest)]
    assert names == ["100", "100.001"]
    assert schedule.take(wait=True) == []


def test_what_goes_wrong_at_the_front_end_reaches_the_engine() -> None:
    class NoJob(FakeJob):
        def begin(self, *, arrival: float | None = None) -> FakeRequest:
            raise ConfigError("no more")

    with pytest.raises(ConfigError, match="no more"):
        Schedule([Prompt(0.0, 5, 1)], 0.0, NoJob()).take(wait=True)


def test_requests_follow_from_the_seed() -> None:
    lengths = Lengths(prompt=(4, 8), new=(2, 3))
    prompts = lengths.prompts(Poisson(50, seed=1), 4.0, seed=3)
    assert prompts == lengths.prompts(Poisson(50, seed=1), 4.0, seed=3)
    assert {p.length for p in prompts} == {4, 5, 6, 7, 8} and {p.new_tokens for p in prompts} == {2, 3}
    assert lengths.prompts(Poisson(50, seed=1), 2.0, seed=3) == prompts[: len(Poisson(50, seed=1).times_s(2.0))]


# With Herald, for real ------------------------------------------------------------------------------------------------


def test_herald_judges_the_requests_of_the_server(domain: str) -> None:
    session = LlmSession()
    session.load("llm-tiny", "cpu", seed=0, warmup=1)
    slo: Any = {"ttft": "60s", "tpot": "60s"}
    session.attach(domain=domain, priority="high", slo=slo, device="cpu", settle=1)
    arrivals = {"kind": "listed", "listed_s": [0.0, 0.0, 0.001, 0.002, 0.003, 0.004]}
    answer: Any = session.run(time.monotonic(), 1.0, arrivals)
    stats = session.detach()
    tokens = sum(each[3] for each in answer["served"])
    assert len(answer["served"]) == 6
    assert (stats["engine"], stats["slo_met"], stats["slo_missed"]) == (1, 6, 0)
    assert (stats["tokens"], stats["queued"], stats["open_requests"]) == (tokens, 0, 0)


def test_an_unknown_server_is_refused() -> None:
    with pytest.raises(ConfigError, match="llm-tiny"):
        LlmSession().load("llm-huge", "cpu", seed=0, warmup=0)


# The experiment -------------------------------------------------------------------------------------------------------

OPTIONS = Options(
    device="cpu",
    mps=False,
    training="cpu-vgg",
    settings=llm_experiment.DEFAULT,
    seconds=2.0,
    repeats=1,
    rate_hz=None,
    ttft_ms=None,
    tpot_ms=None,
    seed=0,
)
ALONE = [Served(0.0, 0.1, 0.2, 11), Served(1.0, 1.1, 1.1, 1)]


def test_an_slo_follows_from_the_run_alone_unless_it_is_given() -> None:
    assert llm_experiment.promised(OPTIONS, ALONE) == Promise(pytest.approx(150.0), pytest.approx(15.0))
    assert llm_experiment.promised(replace(OPTIONS, ttft_ms=70.0), ALONE) == Promise(70.0, pytest.approx(15.0))
    assert Promise(150.0, 15.0).spec() == {"ttft": "150.000ms", "tpot": "15.000ms"}


def test_a_request_meets_its_slo_when_both_of_its_times_do() -> None:
    made = llm_experiment.summary([*ALONE, Served(2.0, 2.3, 2.4, 11), Served(3.0, 3.1, 3.6, 11)], Promise(150.0, 15.0))
    assert made["attainment"] == 0.5
    assert (made["count"], made["tokens"]) == (4, 34)
    assert made["ttft_p50_ms"] == pytest.approx(100) and made["tpot_p50_ms"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": ("alone", "sharde")}, "sharde"),
        ({"settings": ("strict",)}, "--ttft"),
        ({"training": "cpu-transformer"}, "not a trainer"),
        ({"seconds": 0.0}, "1 to 3600"),
        ({"repeats": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(OPTIONS, **changes)


def test_the_table_fits_80_columns() -> None:
    def row(setting: str, **parts: Any) -> dict[str, Any]:
        key = {"setting": setting, "server": "llm-small", "training": "vgg16", "device": "cuda", "mps": True}
        return {"key": {**key, "rate_hz": 5.0}, "slo": {"ttft_ms": 123.4, "tpot_ms": 45.6}, **parts}

    done = llm_experiment.summary([Served(0.0, 1000.0, 2000.0, 11)] * 2000, Promise(150.0, 15.0))
    text = io.StringIO()
    found = [
        row("alone", inference=done),
        row("train-alone", training={"steps_per_s": 4.0}),
        row("herald", inference=done, training={"steps_per_s": 3.0}),
    ]
    llm_experiment.show(found, Console(file=text, width=llm_experiment.WIDTH))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].split() == ["herald", "2000", "1000000.0", "1000000.0", "100000.0", "100000.0", "0.0%", "0.750"]


@pytest.mark.timeout(240)
def test_server_and_trainer_share_a_cpu_for_real(tmp_path: Path) -> None:
    options = replace(OPTIONS, settings=("alone", "strict"), seconds=1.0, training="cpu-gpt")
    alone, strict = llm_experiment.run(options, log_dir=tmp_path)
    assert alone["inference"]["count"] == strict["inference"]["count"] == len(Poisson(20.0, seed=0).times_s(1.0))
    assert alone["slo"] == strict["slo"] and "training" not in alone
    assert strict["training"]["steps"] > 0
    service = strict["herald"]["inference"]
    assert service["slo_met"] + service["slo_missed"] == strict["inference"]["count"]
    assert service["tokens"] == strict["inference"]["tokens"] and service["closes"] > 0
