"""Device work that the dispatcher never announces: announced while somebody listens, and only then."""

import gc
import importlib
import logging
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import herald
from herald.hooks import launch_points, launches, learned, native
from herald.hooks.launch_points import Announcer, Point
from herald.hooks.patches import Patches
from herald.hooks.recorder import Recorder

WAIT_S = 30


class Listener:
    """Stands in for the native hook: what was begun and not ended, and all names."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.open: list[str] = []

    def begin(self, name: bytes, values: Sequence[object]) -> None:
        self.names.append(name.decode())
        self.open.append(name.decode())

    def end(self) -> None:
        self.open.pop()

    def functions(self) -> tuple[Callable[..., None], Callable[[], None]]:
        return self.begin, self.end


class Kernel:
    """Looks to `launch_points` as an inductor kernel does."""

    def __init__(self, name: str = "fused_add", source: str = "a + b") -> None:
        self.inductor_meta = {"kernel_name": name}
        self.filename = source

    def run(self, *args: Any, stream: int = 0, fails: bool = False) -> str:
        if fails:
            raise ZeroDivisionError
        return f"ran {len(args)}"


KERNEL = Point("test kernels", __name__, "Kernel", "run", launch_points._inductor_kernel)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def patches(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patches]:
    monkeypatch.setitem(sys.modules, __name__, _this_module())
    made = Patches(Announcer(), [KERNEL], listener.functions)
    made.start(None)
    yield made
    made.forget()


def _this_module() -> Any:
    module = type(sys)(__name__)
    module.__dict__.update(globals())
    module.__spec__ = importlib.machinery.ModuleSpec(__name__, None)
    return module


def signatures() -> dict[str, Any]:
    return {op.signature: op for op in learned.known()}


# ---- what an announcement is to the hook


def test_announced_work_is_an_op_with_its_name_and_shapes(domain: str) -> None:
    x = torch.randn(7, 9)
    with herald.attach(priority="low", device="cpu"):
        for _ in range(3):
            with launches.announce("test::twice", x, x):
                x.numpy()[:] *= 2
    op = signatures()["test::twice(Float[7, 9], Float[7, 9])"]
    assert op.numel == 126


def test_announced_work_waits_for_a_request_as_an_op_does(domain: str) -> None:
    x, done = torch.randn(5, 3), threading.Event()

    def work() -> None:
        with launches.announce("test::never seen", x):
            done.set()

    with (
        herald.attach(priority="low", device="cpu") as low,
        herald.attach(priority="high", device="cpu") as high,
    ):
        thread = threading.Thread(target=work)
        with high.request():
            thread.start()
            while low.stats().gate_points == 0:
                pass
            assert not done.is_set()
        assert done.wait(WAIT_S)
        thread.join()
        assert low.stats().gate_waits == 1


def test_nothing_is_announced_where_nobody_listens(domain: str) -> None:
    x = torch.randn(6, 2)
    with launches.announce("test::before", x), herald.attach(priority="low", device="cpu"):
        pass
    with launches.announce("test::after", x):
        pass
    assert not [text for text in signatures() if text.startswith(("test::before", "test::after"))]


def test_a_name_without_a_namespace_gets_one_for_it_would_not_count_as_an_op(domain: str) -> None:
    with herald.attach(priority="low", device="cpu"), launches.announce("fft", torch.randn(3)):
        pass
    assert "launch::fft(Float[3])" in signatures()


def test_inputs_are_not_kept_while_the_work_runs(domain: str) -> None:
    """A compiled region frees its inputs as it goes; its peak of memory must not grow."""
    inputs = [torch.randn(3)]
    memory = weakref.ref(inputs[0])
    with herald.attach(priority="low", device="cpu"):
        begin, end = launches._native_functions()
        begin(b"test::frees", inputs)
        inputs.clear()
        gc.collect()
        assert memory() is None
        end()


def test_what_is_no_tensor_is_passed_over_and_of_many_the_first_and_last_count(domain: str) -> None:
    class Subclass(torch.Tensor):
        pass

    some = [None, 3, "x", torch.zeros(2).as_subclass(Subclass), torch.nn.Parameter(torch.zeros(1))]
    with herald.attach(priority="low", device="cpu"):
        begin, end = launches._native_functions()
        for values in (some, [torch.zeros(i) for i in range(20)], (), 3):
            begin(b"test::odd", values)
            end()
    assert "test::odd(Float[1])" in signatures()
    ends = ", ".join(f"Float[{i}]" for i in (0, 1, 2, 3, 19, 18, 17, 16))
    assert f"test::odd({ends})" in signatures()


def test_a_wrong_call_from_python_is_an_error_and_an_end_too_many_is_none(domain: str) -> None:
    begin, end = launches._native_functions()
    with pytest.raises(TypeError):
        begin("text", ())
    end()


def test_events_of_threads_do_not_mix(domain: str) -> None:
    both = threading.Barrier(2, timeout=WAIT_S)

    def work(name: str) -> None:
        for _ in range(100):
            with launches.announce(f"test::outer {name}", torch.zeros(1)):
                both.wait()
                with launches.announce(f"test::inner {name}", torch.zeros(1)):
                    both.wait()

    with herald.attach(priority="low", device="cpu"):
        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len([text for text in signatures() if text.startswith(("test::outer", "test::inner"))]) == 4


def test_a_recording_hears_what_is_announced(domain: str) -> None:
    recorder = Recorder(torch.device("cpu"))
    with recorder, launches.announce("test::recorded", torch.zeros(2)):
        torch.zeros(3).sin()
    found = {recorder.result().signatures[event["signature"]].name: event for event in recorder.result().events}
    assert recorder.result().events[found["aten::sin"]["parent"]] == found["test::recorded"]


def test_a_region_that_cpp_launches_says_so() -> None:
    class Region:
        _fx_graph_cache_key, fx_kwargs = "fabc", {"cpp_wrapper": True}

    assert launch_points._region_name(Region()).startswith("compiled::opaque_region_")
    assert launch_points._region_name(object()).startswith("compiled::region_")


# ---- wrapping and putting back


def test_a_wrapped_method_is_announced_returns_and_raises_as_before(patches: Patches, listener: Listener) -> None:
    kernel = Kernel()
    assert kernel.run(1, 2, stream=7) == "ran 2"
    with pytest.raises(ZeroDivisionError):
        kernel.run(fails=True)
    assert listener.names == [listener.names[0]] * 2
    assert listener.names[0].startswith("triton::fused_add_")
    assert not listener.open


def test_the_last_stop_puts_the_original_back(patches: Patches, listener: Listener) -> None:
    patches.start("gate")
    patches.stop("gate")
    Kernel().run()
    patches.stop(None)
    Kernel().run()
    assert len(listener.names) == 1
    assert not hasattr(Kernel.run, "__wrapped__")
    assert not [finder for finder in sys.meta_path if type(finder).__module__ == "herald.hooks.patches"]


def test_a_name_tells_kernels_by_their_source_and_is_the_same_in_every_run(
    patches: Patches, listener: Listener
) -> None:
    for source in ("a + b", "a - b", "a + b"):
        Kernel(source=source).run()
    first, second, third = listener.names
    assert first == third != second
    assert first == "triton::fused_add_cb23f663"


def test_what_was_launched_can_be_pickled(patches: Patches) -> None:
    kernel = Kernel()
    kernel.run()
    state = pickle.loads(pickle.dumps(kernel.__dict__))
    assert set(state) == {"inductor_meta", "filename", "_herald_name"}


def test_a_module_that_is_imported_later_is_wrapped_then(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_kernels.py").write_text("class Kernel:\n    def run(self): return 'late'\n")
    monkeypatch.syspath_prepend(tmp_path)
    patches = Patches(
        Announcer(),
        [Point("late", "late_kernels", "Kernel", "run", launch_points._inductor_kernel)],
        listener.functions,
    )
    patches.start(None)
    module = importlib.import_module("late_kernels")
    try:
        assert module.Kernel().run() == "late"
        assert len(listener.names) == 1
        patches.stop(None)
        module.Kernel().run()
        assert len(listener.names) == 1
    finally:
        patches.forget()
        del sys.modules["late_kernels"]


def test_a_wrapper_that_somebody_wrapped_stays_without_effect_and_is_not_doubled(
    patches: Patches, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Kernel.run
    monkeypatch.setattr(Kernel, "run", lambda self, *args: ours(self, *args) + ", twice wrapped")
    patches.stop(None)
    assert Kernel().run() == "ran 0, twice wrapped"
    assert not listener.names
    patches.start(None)
    assert Kernel().run() == "ran 0, twice wrapped"
    assert len(listener.names) == 1
    monkeypatch.undo()


def test_what_this_version_does_not_have_is_said_once_and_breaks_nothing(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    points = [
        Point("odd kernels", "torch.cuda.graphs", owner, "launch", launch_points._inductor_kernel)
        for owner in ("NoSuchClass", "CUDAGraph")
    ]
    patches = Patches(Announcer(), points, listener.functions)
    with caplog.at_level(logging.WARNING, "herald"):
        patches.start(None)
        patches.stop(None)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["odd kernels are not gated"]


def test_every_point_that_torch_has_here_is_found(caplog: pytest.LogCaptureFixture) -> None:
    for point in launch_points.POINTS:
        if not point.module.startswith("triton"):
            importlib.import_module(point.module)
    with caplog.at_level(logging.WARNING, "herald"):
        launches.start()
        launches.stop()
    assert not caplog.records


def test_a_forked_child_announces_nothing(domain: str, child: Any) -> None:
    process = child("""
        import os, sys, herald, torch
        from herald.hooks import launches
        with herald.attach(priority="low", device="cpu"):
            if os.fork() == 0:
                finders = [f for f in sys.meta_path if type(f).__module__ == "herald.hooks.patches"]
                wrapped = hasattr(torch.cuda.CUDAGraph.replay, "__wrapped__")
                print("child", launches._announcer.on, len(finders), wrapped, flush=True)
                os._exit(0)
            os.wait()
            print("parent", launches._announcer.on, hasattr(torch.cuda.CUDAGraph.replay, "__wrapped__"))
    """)
    assert process.expect("child") == "False 0 False"
    assert process.expect("parent") == "True True"


# ---- CUDA graphs, without CUDA


class CUDAGraph:
    """As torch's: only the calls count."""

    def capture_begin(self) -> None: ...
    def capture_end(self) -> None: ...
    def replay(self) -> None: ...


@pytest.fixture
def graphs(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patches]:
    monkeypatch.setattr(launch_points, "_current_device", lambda: 0)
    monkeypatch.setattr(launch_points, "_device_tensor", lambda device: torch.zeros(0))
    monkeypatch.setitem(sys.modules, __name__, _this_module())
    points = [
        Point(p.what, __name__, p.owner, p.method, p.wrap) for p in launch_points.POINTS if p.owner == "CUDAGraph"
    ]
    made = Patches(Announcer(), points, listener.functions)
    yield made
    made.forget()


def capture() -> CUDAGraph:
    graph = CUDAGraph()
    graph.capture_begin()
    graph.capture_end()
    return graph


def test_a_replay_says_whether_the_graph_carries_the_waits_of_this_gate(graphs: Patches, listener: Listener) -> None:
    before = capture()
    graphs.start("gate a")
    inside, half = capture(), CUDAGraph()
    half.capture_begin()
    graphs.stop("gate a")
    graphs.start("gate b")
    half.capture_end()
    elsewhere = capture()
    graphs.stop("gate b")
    graphs.start("gate a")
    for graph in (before, inside, half, elsewhere):
        graph.replay()
    kinds = [name.rpartition("_")[0] for name in listener.names]
    assert kinds == ["cuda_graph::" + kind for kind in ("replay", "gated_replay", "replay", "replay")]
    assert len({name.rpartition("_")[2] for name in listener.names}) == 4


def test_a_graph_keeps_its_number_until_it_is_captured_again(graphs: Patches, listener: Listener) -> None:
    graphs.start("gate")
    graph = capture()
    graph.replay()
    graph.replay()
    graph.capture_begin()
    graph.capture_end()
    graph.replay()
    first, again, anew = listener.names
    assert first == again != anew


def test_a_recording_alone_makes_no_gated_graph(graphs: Patches, listener: Listener) -> None:
    graphs.start(None)
    graph = capture()
    graphs.start("gate")
    graph.replay()
    assert "gated" not in listener.names[0]


# ---- torch.compile, custom ops


def test_a_custom_op_is_seen_like_any_other(domain: str) -> None:
    @torch.library.custom_op("herald_test::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() * 2)

    with herald.attach(priority="low", device="cpu"):
        doubled(torch.ones(11))
    assert "herald_test::doubled(Float[11])" in signatures()


def test_compiled_regions_are_announced_forward_and_backward_and_nothing_is_traced(
    domain: str, recwarn: pytest.WarningsRecorder
) -> None:
    class Launcher:
        def run(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.detach().numpy() + 1)

    with herald.attach(priority="low", device="cpu"):
        Launcher.run = launch_points._inductor_kernel(Launcher.run, launches._announcer)
        Launcher.run.__dict__["_torchdynamo_disable"] = True
        weight = torch.ones(4, requires_grad=True)

        @torch.compile
        def step(x: torch.Tensor) -> torch.Tensor:
            return (weight * x).sin()

        @torch.compile
        def launching(x: torch.Tensor) -> torch.Tensor:
            return Launcher().run(x)

        for _ in range(2):
            step(torch.ones(4)).sum().backward()
        assert torch.equal(launching(torch.ones(4)), torch.full((4,), 2.0))
        assert weight.grad is not None
        assert torch.allclose(weight.grad, torch.full((4,), 2 * torch.ones(1).cos().item()))
        assert not [warning for warning in recwarn if "Dynamo does not know how to trace" in str(warning.message)]
    regions = [text for text in signatures() if text.startswith("compiled::region_")]
    assert len(regions) >= 2
    assert [text for text in signatures() if text.startswith("triton::")]
    from torch._inductor.output_code import CompiledFxGraph

    assert not hasattr(CompiledFxGraph.__call__, "__wrapped__")


def test_a_capture_that_does_not_begin_is_over(graphs: Patches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the hook would take itself for needed ever after."""
    calls: list[str] = []

    class Hook:
        def herald_low_capture_begin(self) -> None:
            calls.append("begin")

        def herald_low_capture_end(self) -> None:
            calls.append("end")

    def refuse(self: CUDAGraph) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CUDAGraph, "capture_begin", refuse)
    monkeypatch.setattr(launch_points.native, "hook", Hook)
    graphs.start("gate")
    with pytest.raises(ZeroDivisionError):
        CUDAGraph().capture_begin()
    graphs.stop("gate")
    assert calls == ["begin", "end"]


# ---- when starting fails


def test_a_module_whose_import_is_forbidden_is_left_alone(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "herald_test_forbidden", None)
    made = Patches(
        Announcer(),
        [Point("kernels", "herald_test_forbidden", "Kernel", "run", launch_points._inductor_kernel)],
        listener.functions,
    )
    made.start(None)
    made.stop(None)
    assert made._finder not in sys.meta_path


def test_a_trainer_that_cannot_announce_is_not_gated(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gate: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(launches, "start", fail)
    with pytest.raises(ZeroDivisionError):
        herald.attach(priority="low", device="cpu")
    assert native.hook().herald_low_capture_begin() == 0  # there is no gate
