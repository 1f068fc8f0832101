"""`herald.profile` on the CPU: real steps, and steps that do not do what they should."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils.flop_counter import FlopCounterMode

import herald
from herald import ConfigError, ProfileError
from herald.hooks.recorder import Recorder
from herald.profiles import Profile

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """The recorder is off, and neither hooks nor a timer are left, whatever the test does."""
    handler = signal.getsignal(signal.SIGALRM)
    yield
    assert not module_hooks._global_forward_hooks
    assert not module_hooks._global_forward_pre_hooks
    assert not optimizer_hooks._global_optimizer_post_hooks
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0.0  # pytest's own does not repeat
    with Recorder(CPU):  # refused while another one is on
        pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)))


def training(model: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(2, 3, 8, 8), torch.randint(10, (2,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def profile(step: Callable[[], object], **settings) -> Profile:
    return herald.profile(step, **({"iterations": 2, "warmup": 1, "device": "cpu"} | settings))


def test_a_training_step(tmp_path: Path) -> None:
    net = Net()
    step = training(net)
    found = profile(step, model=net, workload="net")
    assert (found.workload, found.driver, found.num_sms) == ("net", None, None)
    assert found.iteration is not None
    assert found.iteration.wall_ns > 0
    assert found.iteration.host_ns > 0
    seen = {(i.phase, i.module, found.ops[i.op].name) for i in found.iteration.instances}
    assert seen >= {
        ("forward", "conv", "aten::convolution"),
        ("forward", "Net", "aten::relu"),
        ("forward", "head.1", "aten::addmm"),
        ("backward", "conv", "aten::convolution_backward"),
        ("backward", "Net", "aten::threshold_backward"),
        ("backward", "head.1", "aten::mm"),
        ("optimizer", "", "aten::add_"),
    }
    found.save(tmp_path / "net.json")
    assert Profile.load(tmp_path / "net.json", device=found.device, torch=torch.__version__) == found


def test_flops_are_those_that_torch_counts() -> None:
    step = training(Net())
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    found = profile(step)
    assert round(sum(op.calls * op.flops for op in found.ops)) == counter.get_total_flops()


def test_the_data_flow_leads_from_the_forward_to_the_optimizer() -> None:
    found = profile(training(Net()))
    assert found.iteration is not None
    writers: dict[int, list[str]] = {}
    for instance in found.iteration.instances:
        op = found.ops[instance.op].name
        if op == "aten::convolution_backward":
            assert any("aten::threshold_backward" in writers.get(storage, ()) for storage in instance.reads)
            gradients = set(instance.writes)
        for storage in instance.writes:
            writers.setdefault(storage, []).append(op)
    updates = [i for i in found.iteration.instances if i.phase == "optimizer"]
    assert any(gradients & set(update.reads) for update in updates)


def test_the_fingerprint_tells_models_apart_and_runs_not() -> None:
    net = Net()
    step = training(net)
    assert profile(step, model=net).fingerprint == profile(step, model=net).fingerprint
    assert profile(step).fingerprint != profile(step, model=net).fingerprint
    assert profile(lambda: torch.ones(2).add_(1)).fingerprint != profile(lambda: torch.ones(3).add_(1)).fingerprint


def test_a_second_root_is_told_apart() -> None:
    first, second = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    found = profile(lambda: second(first(torch.ones(1, 2))))
    assert found.iteration is not None
    modules = [i.module for i in found.iteration.instances if found.ops[i.op].name == "aten::addmm"]
    assert modules == ["0", "Sequential.0"]


def test_shapes_may_change(caplog: pytest.LogCaptureFixture) -> None:
    sizes = iter(range(1, 1000))
    found = profile(lambda: torch.ones(next(sizes)).add_(1))
    assert "iterations differ in their ops" in caplog.text
    assert found.iteration is not None
    assert "aten::add_" in [found.ops[i.op].name for i in found.iteration.instances]


@pytest.mark.filterwarnings("error")
def test_a_compiled_model_is_not_compiled_anew_by_the_modules_marks(caplog: pytest.LogCaptureFixture) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net = torch.compile(Net(), backend=backend)
    profile(lambda: net(torch.ones(2, 3, 8, 8)))
    assert "differ" not in caplog.text
    assert len({str(graph.code) for graph in graphs}) == 1  # nothing of the marks was traced into it


def test_it_works_in_any_thread() -> None:
    found: list[Profile] = []
    thread = threading.Thread(target=lambda: found.append(profile(lambda: torch.ones(2).add_(1))))
    thread.start()
    thread.join()
    assert found[0].ops


# ---- steps that do not do what they should


def test_a_step_that_does_nothing_is_an_error() -> None:
    with pytest.raises(ProfileError, match="no op was seen on .*: a step function has to run one iteration"):
        profile(lambda: None)


@pytest.mark.parametrize("after", range(9))
def test_a_step_that_raises_is_an_error_whatever_is_on(after: int) -> None:
    calls = iter(range(after + 1))

    def step() -> None:
        if next(calls) == after:
            raise RuntimeError("out of luck")
        torch.ones(2).add_(1)

    with pytest.raises(ProfileError, match=f"raised RuntimeError in iteration {after + 1}: out of luck") as caught:
        profile(step)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("after", [0, 4, 8])
def test_a_step_that_never_ends_is_interrupted(after: int) -> None:
    net, calls = Net(), iter(range(after + 1))

    def step() -> None:
        net(torch.ones(2, 3, 8, 8))
        while next(calls, after) == after:
            try:
                threading.Event().wait()
            except Exception:  # it does not get out of here
                continue

    with pytest.raises(ProfileError, match="limit = 300 ms is over before the iterations were"):
        profile(step, limit="300ms", model=net)


def test_the_limit_counts_between_steps_where_no_signal_comes() -> None:
    errors: list[ProfileError] = []

    def run() -> None:
        try:
            profile(lambda: torch.ones(2).add_(1), limit="1ns")
        except ProfileError as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "limit = 1 ns is over" in str(errors[0])


def test_a_timer_that_was_there_goes_on() -> None:
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGALRM, mine)
    pytests = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        profile(lambda: torch.ones(2).add_(1))
        assert signal.getsignal(signal.SIGALRM) is mine
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] < 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, *pytests)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"step": "train"}, ProfileError, "step = 'train' cannot be called: give a function"),
        ({"step": None}, ProfileError, "step = None cannot be called"),
        ({"warmup": -1}, ConfigError, "warmup = -1: give a whole number in 0 .."),
        ({"iterations": 0}, ConfigError, "iterations = 0: give a whole number in 1 .."),
        ({"iterations": 2.5}, ConfigError, "iterations = 2.5: give"),
        ({"limit": "5"}, ConfigError, "limit = '5' has no unit"),
        ({"device": "tpu"}, ConfigError, "device = 'tpu' is not a device"),
        ({"model": 3}, ConfigError, "model = 3: give a torch.nn.Module"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], error: type[Exception], said: str) -> None:
    step = settings.pop("step", lambda: None)
    with pytest.raises(error, match=said):
        profile(step, **settings)
