"""Device work that no op announces, on a real GPU: it waits at a closed gate all the same; what does not is shown, too.

Whatever runs behind the closed gate has run before, so that nothing is compiled or loaded there; a timer opens the gate
where a test errs in that.
"""

import gc
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import herald
from herald import native
from herald.hooks import launches, learned
from herald.hooks import native as hook
from herald.table import Table

torch = pytest.importorskip("torch")

NAP_S = 0.05  # a pause after which a stream that was not gated would have finished
LONGEST_S = 5.0  # then the gate opens and the test fails
NUM = 1 << 26  # elements: about 0.15 ms a pass on an H200
REPEATS = 8  # more than a quantum, less than the 20 ms by which the host may be ahead


class Gate:
    """Another high-priority job that closes and opens the gate of this GPU by hand."""

    def __init__(self, domain: str, job: herald.Job) -> None:
        self.table = Table.open(domain)
        self.device = self.table.device_slot(job.stats().device)
        self.row = self.table.claim(name="holder", priority="high", device=job.stats().device)

    @contextmanager
    def closed(self) -> Iterator[None]:
        too_long = threading.Event()
        timer = threading.Timer(LONGEST_S, lambda: (too_long.set(), self.open()))
        timer.start()
        native.table().herald_gate_close(self.table.address, self.device, 0, herald.clock.now_ns())
        try:
            yield
        finally:
            self.open()
            timer.cancel()
        assert not too_long.is_set(), "the host was blocked behind the closed gate"

    def open(self) -> None:
        native.table().herald_gate_open(self.table.address, self.device, 0)

    def holds(self, enqueue: Callable[[], object]) -> bool:
        """Whether what is enqueued on the current stream waits while the gate is closed. It runs once it is open."""
        done = torch.cuda.Event()
        with self.closed():
            for _ in range(REPEATS):
                enqueue()
            done.record()
            threading.Event().wait(NAP_S)
            held = not done.query()
        torch.cuda.synchronize()
        return held


@pytest.fixture
def job(domain: str) -> Iterator[herald.Job]:
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:
        yield job
        torch.cuda.synchronize()


@pytest.fixture
def gate(domain: str, job: herald.Job) -> Iterator[Gate]:
    made = Gate(domain, job)
    yield made
    made.open()
    made.table.release(made.row)


@pytest.fixture
def x() -> Iterator[Any]:
    yield torch.randn(NUM, device="cuda")
    gc.collect()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def warm(enqueue: Callable[[], object]) -> None:
    """Until everything is compiled, loaded, allocated and timed."""
    for _ in range(6):
        enqueue()
        torch.cuda.synchronize()


def names() -> set[str]:
    return {op.signature.partition("(")[0] for op in learned.known()}


class Named:
    """Names that a test has added to those known before."""

    def __init__(self) -> None:
        self._before = names()

    def __call__(self, prefix: str) -> list[str]:
        return [name for name in names() - self._before if name.startswith(prefix)]


@pytest.fixture
def named() -> Named:
    return Named()


# ---- Triton and torch.compile

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def scale(x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) * 1.0001, mask=at < n)
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("triton")
    (tmp_path / "herald_test_kernels.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("herald_test_kernels")


def test_a_users_triton_kernel_waits(job, gate, x, kernels, named: Named) -> None:
    def launch() -> None:
        kernels.scale[(NUM // 1024,)](x, NUM, BLOCK=1024)

    warm(launch)
    assert gate.holds(launch)
    assert named("triton::scale_")


def test_kernels_of_compiled_code_wait_one_by_one(job, gate, x, named: Named) -> None:
    compiled = torch.compile(lambda x: (x * 2 + 1).sin())
    warm(lambda: compiled(x))
    points = job.stats().gate_points
    assert gate.holds(lambda: compiled(x))
    assert job.stats().gate_points > points
    assert named("triton::triton_")
    assert not named("compiled::region_")  # made of kernels that are announced: it has no time of its own


def test_compiled_training_waits_forward_and_backward(job, gate, named: Named) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4096, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 4096)).cuda()
    data = torch.randn(2048, 4096, device="cuda")
    compiled = torch.compile(model)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        compiled(data).square().mean().backward()

    warm(step)
    with gate.closed():
        compiled(data)
        done = torch.cuda.Event()
        done.record()
        threading.Event().wait(NAP_S)
        assert not done.query()
    loss = compiled(data).square().mean()
    torch.cuda.synchronize()
    with gate.closed():
        loss.backward()
        done.record()
        threading.Event().wait(NAP_S)
        assert not done.query()
    torch.cuda.synchronize()
    assert named("triton::triton_")


def test_the_graphs_of_reduce_overhead_are_replayed_with_their_waits(job, gate, x, named: Named) -> None:
    compiled = torch.compile(lambda x: (x * 2 + 1).sin(), mode="reduce-overhead")

    def run() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        compiled(x)

    with torch.no_grad():
        warm(run)
        assert gate.holds(run)
    assert named("cuda_graph::gated_replay_")


def test_compiled_code_that_cpp_launches_waits_as_one_unit(job, gate, x, named: Named) -> None:
    import torch._inductor.config as inductor

    with inductor.patch(cpp_wrapper=True), torch.no_grad():
        compiled = torch.compile(lambda x: (x * 2 + 1).sin())
        try:
            warm(lambda: compiled(x))
        except Exception as error:  # whatever a C++ toolchain may lack
            pytest.skip(f"cpp_wrapper does not build here: {type(error).__name__}")
        assert gate.holds(lambda: compiled(x))
    assert named("compiled::opaque_region_")


# ---- CUDA graphs


def captured(x) -> "torch.cuda.CUDAGraph":
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            x.mul_(1.0001)
    return graph


def test_a_graph_captured_before_attach_waits_as_one_unit(domain: str, x, named: Named) -> None:
    x.mul_(1.0001)
    graph = captured(x)
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:
        warm(graph.replay)
        gate = Gate(domain, job)
        assert gate.holds(graph.replay)
        (name,) = named("cuda_graph::replay_")
        (self_ns,) = (op.self_ns for op in learned.known() if op.signature.startswith(f"{name}("))
        assert job.stats().longest_op_ns >= self_ns > 0
        gate.table.release(gate.row)


def test_a_graph_captured_while_attached_carries_its_waits_and_says_so(job, gate, x, named: Named) -> None:
    warm(lambda: x.mul_(1.0001))
    graph = captured(x)
    warm(graph.replay)
    assert gate.holds(graph.replay)
    (name,) = named("cuda_graph::")
    assert name.startswith("cuda_graph::gated_replay_")


def test_graphed_callables_are_replayed_forward_and_backward(job, gate, named: Named) -> None:
    model = torch.nn.Linear(4096, 4096).cuda()
    data = torch.randn(2048, 4096, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(model, (data,))
    warm(lambda: graphed(data).sum().backward())
    assert gate.holds(lambda: graphed(data))
    assert len(named("cuda_graph::gated_replay_")) == 2


# ---- streams, cuDNN


def test_work_on_side_streams_waits_each_on_its_own(job, gate, x) -> None:
    streams = [torch.cuda.Stream() for _ in range(3)]
    values = [x.clone() for _ in streams]
    torch.cuda.synchronize()

    def run() -> None:
        for stream, value in zip(streams, values, strict=True):
            with torch.cuda.stream(stream):
                value.mul_(1.0001)

    warm(run)
    with gate.closed():
        for _ in range(REPEATS):
            run()
        threading.Event().wait(NAP_S)
        assert [stream.query() for stream in streams] == [False] * 3
    torch.cuda.synchronize()


@pytest.fixture
def is_untouched() -> Callable[["torch.Tensor"], bool]:
    """Whether a result is still the NaNs that its memory held: a sample, read by a thread that is never gated."""
    stream = torch.cuda.Stream()

    def look(result: "torch.Tensor", seen: list[bool]) -> None:
        hook.hook().herald_forward_begin(0)  # marks the thread
        with torch.cuda.stream(stream):
            seen.append(bool(result.view(-1)[::4096].isnan().all().item()))

    def untouched(result: "torch.Tensor") -> bool:
        seen: list[bool] = []
        thread = threading.Thread(target=look, args=(result, seen))
        thread.start()
        thread.join()
        return seen[0]

    return untouched


def poison(like: "torch.Tensor") -> None:
    """Fill the memory that the next tensor of this size gets with NaNs."""
    held = [torch.full_like(like, float("nan")) for _ in range(3)]
    torch.cuda.synchronize()
    del held
    probe = torch.empty_like(like)
    assert probe.isnan().all(), "the allocator gave other memory than was freed last"


def test_streams_that_cudnn_forks_to_wait_as_well(job, gate, is_untouched) -> None:
    """It forks by events from the current stream, behind its wait: nothing is written while the gate is closed.

    Its LSTM cannot be asked so: that call waits for the device, and the host is blocked until the gate opens.
    """
    network = torch.nn.Conv2d(64, 64, 3, groups=4, padding=1).cuda()
    data = torch.randn(128, 64, 112, 112, device="cuda")
    run = lambda: network(data)  # noqa: E731
    with torch.no_grad():
        warm(run)
        result = run()
        torch.cuda.synchronize()
        assert not is_untouched(result)
        result.fill_(float("nan"))
        poison(result)
        del result
        with gate.closed():
            result = run()
            assert is_untouched(result)
        torch.cuda.synchronize()
        assert not is_untouched(result)


# ---- kernels of one's own

SCALE = """
extern "C" __global__ void scale(float* x, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) x[i] *= 1.0001f;
}
"""


@pytest.fixture
def scale() -> Any:
    if not hasattr(torch.cuda, "_compile_kernel"):
        pytest.skip(f"torch {torch.__version__} has no torch.cuda._compile_kernel")
    try:
        return torch.cuda._compile_kernel(SCALE, "scale")
    except (OSError, RuntimeError) as error:
        pytest.skip(f"NVRTC: {error}")


GRID = {"grid": (1024, 1, 1), "block": (256, 1, 1)}


def launch_unseen(kernel: Any, x: "torch.Tensor") -> None:
    """As a C++ extension does that registers no op: cuLaunchKernel, told to nobody."""
    call = type(kernel).__call__
    getattr(call, "__wrapped__", call)(kernel, args=[x, NUM], **GRID)


def test_a_kernel_compiled_from_text_waits_also_on_a_stream_that_is_not_current(
    job, gate, x, scale, named: Named
) -> None:
    def launch() -> None:
        scale(args=[x, NUM], **GRID)

    warm(launch)
    assert named("cuda_kernel::")
    assert gate.holds(launch)
    side = torch.cuda.Stream()

    def launch_aside() -> None:
        scale(args=[x, NUM], stream=side, **GRID)

    warm(launch_aside)
    with gate.closed():
        for _ in range(REPEATS):
            launch_aside()
        threading.Event().wait(NAP_S)
        assert not side.query()
    torch.cuda.synchronize()


def test_a_kernel_told_to_nobody_does_not_wait_unless_it_is_announced(job, gate, x, scale) -> None:
    def announced() -> None:
        with launches.announce("test::scale", x):
            launch_unseen(scale, x)

    warm(lambda: launch_unseen(scale, x))
    assert not gate.holds(lambda: launch_unseen(scale, x))
    warm(announced)
    assert gate.holds(announced)


def test_a_kernel_told_to_nobody_waits_behind_an_op_that_does(job, gate, x, scale) -> None:
    y = torch.randn_like(x)

    def run() -> None:
        y.mul_(1.0001)
        launch_unseen(scale, x)

    warm(run)
    assert gate.holds(run)


def test_a_custom_op_that_launches_by_hand_waits_by_its_name(job, gate, x, scale) -> None:
    @torch.library.custom_op("herald_gpu_test::scale_", mutates_args=("x",))
    def scale_(x: torch.Tensor) -> None:
        launch_unseen(scale, x)

    with torch.no_grad():
        warm(lambda: scale_(x))
        assert gate.holds(lambda: scale_(x))
    assert "herald_gpu_test::scale_" in names()


def test_a_jiterator_kernel_waits(job, gate, x, named: Named) -> None:
    twice = torch.cuda.jiterator._create_jit_fn("template <typename T> T herald_twice(T x) { return x + x; }")
    try:
        warm(lambda: twice(x))
    except RuntimeError as error:
        pytest.skip(f"jiterator: {error}")
    assert gate.holds(lambda: twice(x))
    assert named("jiterator::herald_twice")


def test_torchscript_waits_where_its_fuser_is_off(job, gate, x) -> None:
    """Its fused kernels say their name but no tensor, so no device: they are not seen."""
    before = torch._C._jit_texpr_fuser_enabled()
    torch._C._jit_set_texpr_fuser_enabled(False)
    try:
        scripted = torch.jit.script(_chain)
        warm(lambda: scripted(x))
        assert gate.holds(lambda: scripted(x))
    finally:
        torch._C._jit_set_texpr_fuser_enabled(before)


def _chain(x):
    return (x * 2 + 1).sin()


def test_after_detach_no_wrapper_is_left_and_nothing_waits(domain: str, x, scale) -> None:
    with herald.attach(priority="low", name="trainer", domain=domain, device="cuda") as job:
        gate = Gate(domain, job)
        warm(lambda: scale(args=[x, NUM], **GRID))
    assert not hasattr(torch.cuda.CUDAGraph.replay, "__wrapped__")
    assert not hasattr(type(scale).__call__, "__wrapped__")
    assert not gate.holds(lambda: scale(args=[x, NUM], **GRID))
    gate.table.release(gate.row)
