"""Checkpoints: which modules say how far a forward is, and that they leave compiled code and copies alone."""

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import herald
from herald import layout
from herald.fakes import FakeClock
from herald.hooks import checkpoints
from herald.hooks.checkpoints import MOST, NS_PER_CHECKPOINT, RECORDED_FORWARDS, Checkpoints, choose, hookable
from herald.table import Table

MS = 1_000_000


class Layer(torch.nn.Module):
    """Takes ``ms`` of a fake clock."""

    def __init__(self, clock: FakeClock, ms: int) -> None:
        super().__init__()
        self.clock, self.ms = clock, ms

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.advance(self.ms * MS)
        return x


class FakeStamps:
    """Stamps of a fake clock, readable once ``ready``."""

    def __init__(self, clock: FakeClock, ready: Callable[[], bool] = lambda: True) -> None:
        self.clock, self.ready, self.stamps = clock, ready, list[int]()

    def stamp(self) -> None:
        self.stamps.append(self.clock())

    def read(self) -> list[int] | None:
        return [at - self.stamps[0] for at in self.stamps] if self.ready() else None


class Watched:
    """A model of fake layers with its checkpoints; `passed` are the numbers said so far."""

    def __init__(self, *layers_ms: int, ready: Callable[[], bool] = lambda: True) -> None:
        self.clock = FakeClock()
        self.model = torch.nn.Sequential(*(Layer(self.clock, ms) for ms in layers_ms))
        self.passed: list[int] = []
        self.changes: list[int] = []
        self.checkpoints = Checkpoints(
            self.model,
            device=torch.device("cpu"),
            mark=self.passed.append,
            changed=lambda: self.changes.append(len(self.checkpoints.chosen)),
            clock=lambda: FakeStamps(self.clock, ready),
        )

    def forward(self, count: int = 1) -> None:
        for _ in range(count):
            self.checkpoints.before_forward()
            self.model(torch.zeros(1))
            self.checkpoints.after_forward()

    def chosen(self) -> list[int]:
        layers = list(self.model)
        return [layers.index(module) for module in self.checkpoints.chosen]


def num_hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_checkpoints_split_the_time_of_a_forward_evenly() -> None:
    watched = Watched(*[1] * 4, 20, *[1] * 16)
    watched.forward(RECORDED_FORWARDS[0])
    # 40 ms: one every 5 ms, but nothing ends within the layer of 20 ms
    assert watched.chosen() == [3, 5, 10, 15]
    assert watched.passed == []
    watched.forward()
    assert watched.passed == [1, 2, 3, 4]


def test_one_forward_is_recorded_and_hooked_only_for_that() -> None:
    watched = Watched(*[10] * 3)
    watched.forward(RECORDED_FORWARDS[0] - 1)
    assert num_hooks(watched.model) == 0
    watched.checkpoints.before_forward()
    assert num_hooks(watched.model) == 3
    watched.model(torch.zeros(1))
    watched.checkpoints.after_forward()
    assert num_hooks(watched.model) == len(watched.checkpoints.chosen)


def test_of_two_threads_that_begin_to_record_one_does() -> None:
    watched = Watched(*[10] * 3)
    watched.forward(RECORDED_FORWARDS[0] - 1)
    watched.checkpoints.before_forward()
    watched.checkpoints._record()  # another thread, which looked before that one had begun
    watched.model(torch.zeros(1))
    watched.checkpoints.after_forward()
    assert num_hooks(watched.model) == len(watched.checkpoints.chosen) == 2


def test_device_times_are_awaited_by_later_forwards_never_for() -> None:
    ready = [False]
    watched = Watched(*[10] * 3, ready=lambda: ready[0])
    watched.forward(20)
    assert watched.chosen() == []
    ready[0] = True
    watched.forward()
    assert watched.chosen() == [0, 1]


def test_a_model_that_changed_after_its_warm_up_gets_other_checkpoints() -> None:
    watched = Watched(100, *[1] * 20)
    watched.forward(RECORDED_FORWARDS[0])
    assert watched.chosen() == [5]
    watched.model[0].ms = 1
    watched.forward(RECORDED_FORWARDS[1])
    assert len(watched.chosen()) == MOST
    assert watched.changes == [1, MOST]
    assert num_hooks(watched.model) == len(watched.chosen())


def test_a_second_recording_that_is_hardly_different_changes_nothing() -> None:
    watched = Watched(*[1] * 40)
    watched.forward(RECORDED_FORWARDS[0])
    watched.model[0].ms = 2
    watched.forward(RECORDED_FORWARDS[1])
    assert len(watched.changes) == 1


def test_a_short_forward_has_none() -> None:
    watched = Watched(*[0] * 8)
    watched.forward(RECORDED_FORWARDS[0])
    assert num_hooks(watched.model) == 0
    assert watched.changes == []


def test_a_forward_that_cannot_be_timed_goes_on_without_checkpoints() -> None:
    watched = Watched(*[10] * 3)
    watched.forward(RECORDED_FORWARDS[0] - 1)
    watched.checkpoints.before_forward()
    watched.checkpoints._recording._clock.stamp = lambda: 1 / 0
    watched.model(torch.zeros(1))
    watched.checkpoints.after_forward()
    assert num_hooks(watched.model) == 0


def test_another_threads_forward_is_not_recorded() -> None:
    watched = Watched(*[10] * 3)
    watched.forward(RECORDED_FORWARDS[0] - 1)
    watched.checkpoints.before_forward()
    other = threading.Thread(target=watched.forward)
    other.start()
    other.join()
    watched.model(torch.zeros(1))
    watched.checkpoints.after_forward()
    assert len(watched.chosen()) > 0


def test_removing_while_a_forward_is_recorded_leaves_nothing() -> None:
    watched = Watched(*[10] * 3)
    watched.forward(RECORDED_FORWARDS[0] - 1)
    watched.checkpoints.before_forward()
    watched.checkpoints.remove()
    watched.model(torch.zeros(1))
    watched.checkpoints.after_forward()
    watched.forward(RECORDED_FORWARDS[1])
    assert num_hooks(watched.model) == 0


@given(st.lists(st.integers(0, 100 * MS), max_size=60), st.integers(0, 10 * MS))
def test_what_is_chosen_ran_once_in_order_and_is_worth_its_cost(times: list[int], rest_ns: int) -> None:
    modules = [torch.nn.Identity() for _ in range(max(1, len(times) // 2))]
    passed = [(modules[i % len(modules)], at_ns) for i, at_ns in enumerate(sorted(times))]
    total_ns = max(times, default=0) + rest_ns
    chosen = choose(passed, total_ns)
    assert len(chosen) <= min(MOST, total_ns // NS_PER_CHECKPOINT)
    assert [at_ns for _, at_ns in chosen] == sorted(at_ns for _, at_ns in chosen)
    assert len({id(module) for module, _ in chosen}) == len(chosen)
    assert all(sum(other is module for other, _ in passed) == 1 for module, _ in chosen)


def test_nothing_within_compiled_code_is_hooked() -> None:
    own, scripted = torch.nn.Linear(2, 2), torch.jit.script(torch.nn.Linear(2, 2))
    in_place = torch.nn.Sequential(torch.nn.Linear(2, 2))
    in_place.compile(backend="eager")
    outside = torch.compile(torch.nn.Sequential(torch.nn.Linear(2, 2)), backend="eager")
    model = torch.nn.Sequential(own, in_place, outside, scripted)
    assert list(hookable(model)) == [own]
    assert list(hookable(torch.compile(model, backend="eager"))) == []


# ---- in a job


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def net(domain: str, monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.setattr(checkpoints, "NS_PER_CHECKPOINT", 1)
    return Net()


X = torch.randn(8, 64)


def test_a_model_that_is_compiled_later_stays_one_graph(net: Net) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    with herald.attach(net, priority="high", slo="1s") as job, torch.no_grad():
        for _ in range(RECORDED_FORWARDS[0]):
            expected = net(X)
        assert num_hooks(net) > 0
        compiled = torch.compile(net, backend=backend)
        for _ in range(RECORDED_FORWARDS[1]):
            assert torch.equal(compiled(X), expected)
        assert len(set(graphs)) == 1  # whole; compiled again where the choice of checkpoints changed
        assert job.stats().requests_done == RECORDED_FORWARDS[0] + RECORDED_FORWARDS[1]
    torch._dynamo.reset()


@pytest.mark.parametrize("compile_first", [True, False])
def test_a_model_that_is_compiled_from_the_start_has_no_hooks(net: Net, compile_first: bool) -> None:
    compiled = torch.compile(net, backend="eager")
    with herald.attach(compiled if compile_first else net, priority="high", slo="1s"):
        for _ in range(RECORDED_FORWARDS[1] + 1):
            compiled(X)
            assert num_hooks(net) == 0
    torch._dynamo.reset()


def test_copies_and_pickles_speak_for_themselves_only(net: Net) -> None:
    with herald.attach(net, priority="high", slo="1s") as job:
        for _ in range(RECORDED_FORWARDS[0]):
            expected = net(X)
        assert num_hooks(net) > 0
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(X), expected)
        assert job.stats().requests_done == RECORDED_FORWARDS[0]
    assert num_hooks(net) == 0


def test_a_single_forward_is_followed_by_its_checkpoints(net: Net) -> None:
    """The lead that the plan gives is 1000 s of 500 s; past a checkpoint, what remains is a moment."""
    table = Table.open()
    gates: list[int] = []

    def give_pace(*_: object) -> None:
        view = job.stats()
        pace = {"margin_ns": MS, "inflation_ppm": 1_100_000, "quantile_ppm": 990_000}
        table.publish_plan(view.row, view.generation, 1000 * 10**9, 1, **pace)
        look()

    def look(*_: object) -> None:
        gates.append(table.gate_words()["cpu", layout.CLASS_HEAVY])

    with herald.attach(net, priority="high", slo="500s") as job:
        for _ in range(RECORDED_FORWARDS[1] + 20):
            net(X)
        assert num_hooks(net) > 0
        assert job.stats().progress_error is not None
        net.blocks[0].register_forward_pre_hook(give_pace)
        net.blocks[9].register_forward_hook(look)
        net(X)
        assert gates == [1, 0]  # strict at first


def test_what_torch_fuses_in_inference_is_left_alone() -> None:
    model = torch.nn.Transformer(32, 2, num_encoder_layers=2, num_decoder_layers=2)
    fused = {id(part) for layer in model.encoder.layers for part in layer.modules()}
    found = {id(module) for module in hookable(model)}
    assert not fused & found
    assert {id(layer) for layer in model.decoder.layers} <= found
