"""The host gate on CPU: a training thread's heavy ops wait while a request is open, and only then."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

import herald
from herald import layout, native
from herald.hooks import learned
from herald.table import Table

WAIT_S = 30  # for what must happen; never for what must not


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(600, 600)


def learn(operation: Callable[[], object]) -> None:
    """Run an op often enough that its cost is known."""
    for _ in range(4):
        operation()


class Trainer:
    """A thread that runs one op per request of the test."""

    def __init__(self, operation: Callable[[], object]) -> None:
        self._operation = operation
        self._go, self.done = threading.Event(), threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._go.wait() and not self._stop:
            self._go.clear()
            self._operation()
            self.done.set()

    def start_op(self) -> None:
        self.done.clear()
        self._go.set()

    def close(self) -> None:
        self._stop = True
        self._go.set()
        self._thread.join(WAIT_S)


def wait_until_gated(job: herald.Job, points: int) -> None:
    """Until the job has reached one more gate point: it is then inside the wait, or about to be."""
    while job.stats().gate_points <= points:
        pass


def test_a_heavy_op_waits_for_the_request_and_then_runs(domain: str, matrix: torch.Tensor) -> None:
    with (
        herald.attach(priority="low", name="train", device="cpu") as low,
        herald.attach(priority="high", name="serve", device="cpu") as high,
    ):
        learn(lambda: matrix @ matrix)
        trainer = Trainer(lambda: matrix @ matrix)
        request = high.begin()
        points = low.stats().gate_points
        trainer.start_op()
        wait_until_gated(low, points)
        assert not trainer.done.is_set()
        request.end()
        assert trainer.done.wait(WAIT_S)
        assert low.stats().gate_waits == 1
        trainer.close()


def test_a_light_op_and_a_view_are_never_gated(domain: str) -> None:
    small = torch.randn(4)
    with (
        herald.attach(priority="low", name="train", device="cpu") as low,
        herald.attach(priority="high", name="serve", device="cpu") as high,
    ):
        learn(lambda: small.add_(1))
        points = low.stats().gate_points
        with high.request():
            trainer = Trainer(lambda: small.add_(1).view(2, 2).t())
            trainer.start_op()
            assert trainer.done.wait(WAIT_S)
            trainer.close()
        assert low.stats().gate_points == points


def test_an_unknown_op_is_heavy(domain: str) -> None:
    with (
        herald.attach(priority="low", name="train", device="cpu") as low,
        herald.attach(priority="high", name="serve", device="cpu") as high,
    ):
        never_seen = torch.randn(3, 5, 7)
        trainer = Trainer(lambda: never_seen.sin())
        request = high.begin()
        trainer.start_op()
        wait_until_gated(low, 0)
        assert not trainer.done.is_set()
        request.end()
        assert trainer.done.wait(WAIT_S)
        trainer.close()


def test_the_serving_thread_is_never_gated_in_a_process_with_both_jobs(domain: str, matrix: torch.Tensor) -> None:
    """Inference never waits for anything of Herald's, not even between its requests."""
    with herald.attach(priority="low", name="train", device="cpu"):
        learn(lambda: matrix @ matrix)
        high = herald.attach(priority="high", name="serve", device="cpu")
        overlapping = high.begin()
        matrix @ matrix  # would deadlock this test if it waited
        with high.request():
            matrix @ matrix
        overlapping.end()
        high.detach()


def test_backward_is_gated_too(domain: str) -> None:
    weight = torch.randn(300, 300, requires_grad=True)
    with (
        herald.attach(priority="low", name="train", device="cpu") as low,
        herald.attach(priority="high", name="serve", device="cpu") as high,
    ):
        learn(lambda: (weight @ weight).sum().backward())
        loss = (weight @ weight).sum()
        points = low.stats().gate_points
        request = high.begin()
        trainer = Trainer(loss.backward)
        trainer.start_op()
        wait_until_gated(low, points)
        assert not trainer.done.is_set()
        request.end()
        assert trainer.done.wait(WAIT_S)
        trainer.close()


def test_detach_frees_a_thread_that_waits_at_the_gate(domain: str, matrix: torch.Tensor) -> None:
    low = herald.attach(priority="low", name="train", device="cpu")
    high = herald.attach(priority="high", name="serve", device="cpu")
    learn(lambda: matrix @ matrix)
    trainer = Trainer(lambda: matrix @ matrix)
    points = low.stats().gate_points
    high.begin()  # never ends
    trainer.start_op()
    wait_until_gated(low, points)
    low.detach()
    assert trainer.done.wait(WAIT_S)
    trainer.start_op()
    assert trainer.done.wait(WAIT_S)
    trainer.close()
    high.detach()
    assert Table.open(domain).gate_words()["cpu", layout.CLASS_HEAVY] == 0


def test_waiting_at_the_gate_does_not_hold_the_gil(domain: str, matrix: torch.Tensor) -> None:
    """A thread that waits lets every other Python thread run: this test itself is one."""
    with (
        herald.attach(priority="low", name="train", device="cpu") as low,
        herald.attach(priority="high", name="serve", device="cpu") as high,
    ):
        learn(lambda: torch.tensor([[1.0, 2.0]]).clone())
        learn(lambda: matrix @ matrix)
        trainer = Trainer(lambda: [matrix[0].sum().item(), matrix @ matrix])
        points = low.stats().gate_points
        request = high.begin()
        trainer.start_op()
        wait_until_gated(low, points)
        assert sum(range(1000)) == 499500
        request.end()
        assert trainer.done.wait(WAIT_S)
        trainer.close()


def test_a_dataloader_worker_is_not_gated(domain: str, matrix: torch.Tensor) -> None:
    """A forked worker inherits the callback; it must not wait for a gate, nor end the parent's job."""

    class Squares(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> torch.Tensor:
            return (matrix @ matrix)[0] * index

    with (
        herald.attach(priority="low", name="train", device="cpu") as low,
        herald.attach(priority="high", name="serve", device="cpu") as high,
    ):
        learn(lambda: matrix @ matrix)
        with high.request():
            loader = torch.utils.data.DataLoader(
                Squares(), num_workers=1, multiprocessing_context="fork", timeout=WAIT_S
            )
            # This thread serves, so what it does itself (collating) is not gated either.
            assert len(list(loader)) == 4
        assert low.stats().requests_done == 0
        assert high.stats().requests_done == 1
        assert {job.name for job in Table.open(domain).jobs()} == {"train", "serve"}


def test_a_forked_child_can_attach_a_job_of_its_own(domain: str, child) -> None:
    """A pre-forking server imports and builds once, then attaches in each worker."""
    server = child("""
        import os, herald
        from herald.hooks import native
        native.hook()
        parent = herald.attach(priority="high", name="parent", device="cpu")
        pid = os.fork()
        if pid == 0:
            with herald.attach(priority="high", name="child", device="cpu") as job:
                with job.request():
                    pass
                print("child", job.stats().requests_done, parent.stats().requests_done, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        with parent.request():
            pass
        print("parent", parent.stats().requests_done)
    """)
    assert server.expect("child") == "1 0"
    assert server.expect("parent") == "1"


def test_costs_survive_a_round_through_a_file(domain: str, matrix: torch.Tensor, tmp_path) -> None:
    path = tmp_path / "ops.json"
    with herald.attach(priority="low", name="train", device="cpu") as low:
        learn(lambda: matrix @ matrix)
        low.save_profile(path)
    saved = {op.signature: op for op in learned.known()}
    from herald.hooks import native as hook

    hook.hook().herald_costs_clear()
    assert list(learned.known()) == []
    with herald.attach(priority="low", name="train", device="cpu", profile=path) as low:
        matrix @ matrix
        assert low.stats().ops_unknown == 0
    loaded = {op.signature: op for op in learned.known()}
    signature = "aten::mm(Float[600, 600], Float[600, 600])"
    assert loaded[signature] == saved[signature]
    assert loaded[signature].kind == "heavy"


def test_a_gate_forced_open_stays_open_for_new_requests_during_the_breather(domain: str) -> None:
    table = Table.open(domain)
    hour_ns = 3600 * 10**9  # so that nothing but this test finds the request stuck
    table.publish_limits(max_hold_ns=hour_ns, breather_ns=hour_ns, quantum_ns=250_000)
    with herald.attach(priority="high", name="serve", device="cpu") as high:
        stuck = high.begin()
        table.reap(herald.clock.now_ns() + 2 * hour_ns)
        assert native.table().herald_gate_wait(table.address, 0, 10**10)
        with high.request():
            assert table.gate_words()["cpu", layout.CLASS_HEAVY] == 0
        stuck.end()


def let_rest(job: herald.Job) -> None:
    """Run known ops until the hook rests, since nobody could close its gate."""
    one = torch.ones(1)
    deadline = time.monotonic() + WAIT_S
    while job.stats().armed:
        for _ in range(5000):
            one.add_(1)
        assert time.monotonic() < deadline


def test_the_hook_rests_while_no_service_is_attached_and_is_back_when_attach_returns(domain: str, matrix) -> None:
    with herald.attach(priority="low", name="train", device="cpu") as low:
        learn(lambda: matrix @ matrix)
        let_rest(low)
        points = low.stats().gate_points
        matrix @ matrix
        assert low.stats().gate_points == points
        trainer = Trainer(lambda: matrix @ matrix)
        with herald.attach(priority="high", name="serve", device="cpu") as high:
            assert low.stats().armed
            with high.request():
                trainer.start_op()
                wait_until_gated(low, points)
                assert not trainer.done.is_set()
            assert trainer.done.wait(WAIT_S)
        trainer.close()


def test_a_resting_hook_is_armed_by_a_service_of_another_process(domain: str, matrix, child) -> None:
    with herald.attach(priority="low", name="train", device="cpu") as low:
        learn(lambda: matrix @ matrix)
        let_rest(low)
        server = child("""
            import herald, sys
            with herald.attach(priority="high", name="serve", device="cpu"):
                print("attached", flush=True)
                sys.stdin.readline()
            print("detached", flush=True)
            sys.stdin.readline()
        """)
        server.expect("attached")
        assert low.stats().armed
        server.say("")
        server.expect("detached")
        let_rest(low)


def test_while_a_graph_is_captured_the_hook_does_not_rest(domain: str, matrix) -> None:
    from herald.hooks import native as hook

    with herald.attach(priority="low", name="train", device="cpu") as low:
        let_rest(low)
        hook.hook().herald_low_capture_begin()
        assert low.stats().armed
        hook.hook().herald_low_capture_end()
        let_rest(low)


def test_another_rule_holds_for_what_was_learnt_but_not_for_what_a_profile_says() -> None:
    from herald.hooks import classes
    from herald.hooks import native as hook

    def kinds() -> dict[str, str]:
        return {op.signature: op.kind for op in learned.known()}

    by_rule, by_profile = 0, 2
    hook.hook().herald_costs_clear()
    hook.hook().herald_costs_rule(*classes.CPU)
    hook.hook().herald_costs_set(1, 10_000, 64, by_rule, b"learnt")
    hook.hook().herald_costs_set(2, 10_000, 64, by_profile, b"told")
    assert kinds() == {"learnt": "light", "told": "light"}
    hook.hook().herald_costs_rule(2_500, 5_000, 1 << 18)
    assert kinds() == {"learnt": "heavy", "told": "light"}
    hook.hook().herald_costs_rule(*classes.CPU)
    hook.hook().herald_costs_clear()
