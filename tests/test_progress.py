"""Progress of requests: what is learnt of past ones, what is predicted from it, and what the gate makes of that."""

import ctypes
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import herald
from herald import layout
from herald.hooks import native
from herald.table import Table

MS = 1_000_000
MEDIAN, HIGH = 500_000, 990_000
FEWEST = 20
NEVER_ALONE = 2**63 - 1


def at(steps: int, checkpoint: int = 0) -> int:
    return steps << 4 | checkpoint


class Model:
    """The native model of progress by itself; every request begins at 0 and is undisturbed unless said otherwise."""

    def __init__(self) -> None:
        self.lib = native.hook()
        self.pointer = self.lib.herald_progress_new()

    def learn(
        self, end_ns: int, seen: Sequence[tuple[int, int]] = (), *, steps: int = 0, alone_since_ns: int = 0
    ) -> int:
        times = (ctypes.c_int64 * len(seen))(*(t for t, _ in seen))
        positions = (ctypes.c_uint32 * len(seen))(*(p for _, p in seen))
        learn = self.lib.herald_progress_learn
        return int(learn(self.pointer, len(seen), times, positions, 0, end_ns, steps, alone_since_ns))

    def learn_steps(self, steps: int, step_ns: int, count: int = FEWEST) -> None:
        for _ in range(count):
            self.learn(steps * step_ns, [(n * step_ns, at(n)) for n in range(1, steps + 1)], steps=steps)

    def bound(self, position: int, ppm: int = HIGH) -> int:
        return int(self.lib.herald_progress_bound(self.pointer, position, ppm))

    def expected(self, position: int, since_ns: int = 0, *, alone: bool = True) -> int:
        return int(self.lib.herald_progress_expected(self.pointer, position, since_ns, alone))


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    native.hook()  # a build is no part of a test's time


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.lib.herald_progress_free(made.pointer)


def about(value_ns: float) -> object:
    return pytest.approx(value_ns, rel=1 / 32, abs=200)


# ---- one forward, checkpoint by checkpoint


@given(st.lists(st.integers(1, 10**11), min_size=FEWEST, max_size=400))
def test_the_bound_at_a_checkpoint_is_the_quantile_of_past_remaining_times(remaining_ns: list[int]) -> None:
    model = Model()
    for value_ns in remaining_ns:
        model.learn(1000 + value_ns, [(1000, at(0, 3))])
    exact = sorted(remaining_ns)[math.ceil(0.99 * len(remaining_ns)) - 1]
    assert exact <= model.bound(at(0, 3)) <= exact * 33 / 32 + 200
    model.lib.herald_progress_free(model.pointer)


@given(st.data())
def test_a_bound_is_never_shorter_than_a_later_ones(data: st.DataObject) -> None:
    """Whatever was sighted of past requests, and however little of some checkpoints."""
    model = Model()
    for _ in range(40):
        numbers = sorted(data.draw(st.sets(st.integers(1, 7))))
        times = sorted(data.draw(st.lists(st.integers(1, 10**9), min_size=len(numbers), max_size=len(numbers))))
        model.learn(2 * 10**9, [(t, at(0, n)) for t, n in zip(times, numbers, strict=True)])
    bounds = [model.bound(at(0, n)) for n in range(8)]
    assert bounds == sorted(bounds, reverse=True)
    model.lib.herald_progress_free(model.pointer)


def test_nothing_is_predicted_of_too_few_requests(model: Model) -> None:
    for _ in range(FEWEST - 1):
        model.learn(10 * MS, [(5 * MS, at(0, 4))])
    assert (model.bound(at(0, 4)), model.expected(at(0, 4)), model.expected(0)) == (-1, -1, -1)
    model.learn(10 * MS, [(5 * MS, at(0, 4))])
    assert model.bound(at(0, 4)) == about(5 * MS)


def test_a_request_that_has_not_begun_its_work_still_takes_all_of_it(model: Model) -> None:
    for _ in range(FEWEST):
        assert model.bound(0) == -1
        model.learn(10 * MS)
    assert model.bound(0) == about(10 * MS)


def test_a_checkpoint_nobody_has_sighted_yet_is_as_far_off_as_the_one_before(model: Model) -> None:
    for _ in range(FEWEST):
        model.learn(10 * MS, [(4 * MS, at(0, 2))])
    assert model.bound(at(0, 5)) == model.bound(at(0, 2)) == about(6 * MS)


def test_the_expected_time_runs_down_and_not_below_zero(model: Model) -> None:
    for _ in range(FEWEST):
        model.learn(10 * MS, [(4 * MS, at(0, 2))])
    assert model.expected(at(0, 2)) == about(6 * MS)
    assert model.expected(at(0, 2), 4 * MS) == pytest.approx(2 * MS, abs=0.2 * MS)
    assert model.expected(at(0, 2), 60 * MS) == 0


def test_without_marks_the_longer_a_request_runs_the_longer_it_is(model: Model) -> None:
    """Q(T | T > elapsed) - elapsed: past the end of the short requests it must be one of the long ones."""
    for _ in range(30):
        model.learn(10 * MS)
    for _ in range(10):
        model.learn(100 * MS)
    assert model.expected(0, 5 * MS) == pytest.approx(5 * MS, rel=0.1)
    assert model.expected(0, 20 * MS) == pytest.approx(80 * MS, rel=0.1)


def test_undisturbed_requests_say_what_remains_once_the_gate_closes(model: Model) -> None:
    for _ in range(FEWEST):
        model.learn(10 * MS, [(4 * MS, at(0, 2))])
        model.learn(30 * MS, [(4 * MS, at(0, 2))], alone_since_ns=NEVER_ALONE)
        model.learn(30 * MS, [(4 * MS, at(0, 2))], alone_since_ns=5 * MS)  # closed after the checkpoint
    assert model.bound(at(0, 2)) == about(6 * MS)
    assert model.expected(at(0, 2), alone=False) == about(26 * MS)


def test_undisturbed_times_are_forgotten_when_nothing_confirms_them_any_more(model: Model) -> None:
    for _ in range(FEWEST):
        model.learn(10 * MS, [(4 * MS, at(0, 2))])
    for _ in range(600):
        model.learn(40 * MS, [(4 * MS, at(0, 2))], alone_since_ns=NEVER_ALONE)
    assert model.bound(at(0, 2)) == about(36 * MS)


def test_a_service_that_changes_is_learnt_anew(model: Model) -> None:
    for _ in range(600):
        model.learn(100 * MS, [(50 * MS, at(0, 4))])
    for _ in range(3000):
        model.learn(10 * MS, [(5 * MS, at(0, 4))])
    assert model.bound(at(0, 4)) == about(5 * MS)


# ---- steps


def test_what_remains_of_a_loop_is_its_remaining_steps(model: Model) -> None:
    model.learn_steps(40, MS)
    assert model.bound(at(10)) == about(30 * MS)
    assert model.expected(at(30)) == about(10 * MS)
    assert model.expected(at(30), 2 * MS) == pytest.approx(8 * MS, rel=0.05)


def test_a_loop_that_went_on_past_the_short_ones_is_a_long_one(model: Model) -> None:
    """quantile(N | N > n) - n."""
    model.learn_steps(10, MS, count=90)
    model.learn_steps(60, MS, count=10)
    assert model.expected(at(5)) == about(5 * MS)
    assert model.expected(at(11)) == about(49 * MS)
    assert model.bound(at(5)) == about(55 * MS)


def test_a_loop_longer_than_any_is_not_thought_to_end_at_once(model: Model) -> None:
    model.learn_steps(10, MS)
    assert model.bound(at(80)) >= 10 * MS


def test_what_follows_the_last_step_is_not_forgotten(model: Model) -> None:
    for _ in range(FEWEST):
        model.learn(30 * MS, [(10 * MS, at(1)), (20 * MS, at(2))], steps=2)
    assert model.bound(at(2)) == about(10 * MS)


def test_steps_are_learnt_of_requests_that_nobody_looked_at(model: Model) -> None:
    """As under the strict plan, whose agent does not look at progress: the number of steps is known all the same."""
    for _ in range(FEWEST):
        model.learn(40 * MS, steps=40)
    assert model.bound(at(10)) == about(30 * MS)


@given(st.lists(st.integers(1, 3000), min_size=FEWEST, max_size=60), st.integers(1, 3000))
def test_a_bound_of_steps_is_never_below_the_expectation(lengths: list[int], n: int) -> None:
    model = Model()
    for length in lengths:
        model.learn(length * MS, steps=length)
    assert model.bound(at(n)) >= model.expected(at(n)) >= 0
    model.lib.herald_progress_free(model.pointer)


# ---- how good it is


def test_the_error_is_that_of_the_prediction_at_the_middle(model: Model) -> None:
    marks = [(2 * MS, at(0, 1)), (4 * MS, at(0, 2)), (6 * MS, at(0, 3))]
    errors = [model.learn(10 * MS, marks) for _ in range(FEWEST + 1)]
    assert errors[:FEWEST] == [-1] * FEWEST
    assert 0 <= errors[-1] < 50_000
    # At its middle, 10 ms, its last checkpoint (6 ms) was thought to be 4 ms from the end: nothing left of 10 ms.
    assert model.learn(20 * MS, marks) == pytest.approx(1_000_000, rel=0.05)


def test_a_long_request_is_remembered_in_a_few_sightings_of_all_of_it(model: Model) -> None:
    model.learn_steps(10_000, MS, count=FEWEST)
    seen = [(n * MS, at(n)) for n in range(1, 10_001)]
    assert 0 <= model.learn(10_000 * MS, seen, steps=10_000) < 50_000


# ---- in a job


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


def is_closed(table: Table) -> bool:
    return table.gate_words()["cpu", layout.CLASS_HEAVY] != 0


def give_pace(table: Table, row: int, lead_ns: int, margin_ns: int = MS) -> None:
    generation = table.job(row).generation
    table.publish_plan(row, generation, lead_ns, 1, margin_ns=margin_ns, inflation_ppm=1_100_000, quantile_ppm=HIGH)


def serve_loops(job: herald.Job, model: torch.nn.Module, steps: int, count: int = FEWEST) -> None:
    for _ in range(count):
        with job.request():
            for _ in range(steps):
                model(torch.zeros(1, 4))


def test_the_lead_of_a_request_follows_its_steps(table: Table) -> None:
    """The plan wants it closed 1000 s before the deadline; after a step of three, a moment is enough."""
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo="500s") as job:
        serve_loops(job, model, steps=3)
        with job.request():
            model(torch.zeros(1, 4))
            give_pace(table, job.stats().row, lead_ns=1000 * 10**9)
            model(torch.zeros(1, 4))
            assert not is_closed(table)


def test_the_lead_of_a_request_at_its_begin_is_that_of_a_whole_one_once_learnt(table: Table) -> None:
    """Until then the plan's."""
    with herald.attach(priority="high", slo="500s", device="cpu") as job:
        for _ in range(FEWEST):
            give_pace(table, job.stats().row, lead_ns=1000 * 10**9)
            with job.request():
                assert is_closed(table)
        with job.request():
            assert not is_closed(table)


def test_a_request_that_ran_out_of_slack_keeps_the_gate_to_its_end(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo="500s") as job:
        serve_loops(job, model, steps=3)
        give_pace(table, job.stats().row, lead_ns=MS, margin_ns=1000 * 10**9)
        with job.request():
            assert is_closed(table)
            give_pace(table, job.stats().row, lead_ns=MS)
            model(torch.zeros(1, 4))
            assert is_closed(table)
        with job.request():
            assert not is_closed(table)


def test_a_plan_without_pace_keeps_its_lead(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo="500s") as job:
        serve_loops(job, model, steps=3)
        view = job.stats()
        with job.request():
            model(torch.zeros(1, 4))
            table.publish_plan(view.row, view.generation, 1000 * 10**9, 1)
            model(torch.zeros(1, 4))
            assert is_closed(table)


def test_progress_is_published_while_a_request_is_open_and_withdrawn_after(table: Table) -> None:
    """By the job's agent, for `herald status`."""
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo="10s") as job:
        assert job.stats().remaining_ns == -1
        serve_loops(job, model, steps=3)
        with job.request():
            model(torch.zeros(1, 4))
            while (stats := job.stats()).remaining_ns < 0:
                pass
            assert 0 < stats.progress_ppm <= 1_000_000
        stats = job.stats()
        assert (stats.remaining_ns, stats.progress_ppm) == (-1, 0)


def test_errors_of_predictions_are_counted_in_the_row(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo="10s") as job:
        serve_loops(job, model, steps=3, count=FEWEST)
        assert job.stats().progress_error is None
        serve_loops(job, model, steps=3, count=10)
        stats = job.stats()
        assert stats.progress_scored == 10
        assert 0 <= stats.progress_error <= 10


def test_steps_of_work_that_is_no_forward_are_said(table: Table) -> None:
    with herald.attach(priority="high", slo="500s", device="cpu") as job:
        for _ in range(FEWEST):
            with job.request() as request:
                request.step()
                request.step()
        with job.request() as request:
            request.step()
            give_pace(table, job.stats().row, lead_ns=1000 * 10**9)
            request.step()
            assert not is_closed(table)
        request.step()  # after the end: nothing
        assert job.stats().requests_done == FEWEST + 1


def test_with_several_requests_open_a_forward_is_a_step_of_the_oldest(table: Table) -> None:
    """A front end begins them as they come, and one thread serves them in turn."""
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high", slo="500s") as job:
        with ThreadPoolExecutor(1) as front_end:
            queue = [front_end.submit(job.begin).result() for _ in range(2)]
        tokens = []
        for num_steps, request in zip((3, 5), queue, strict=True):
            for _ in range(num_steps):
                model(torch.zeros(1, 4))
            request.first_token()  # its steps are taken for tokens from now on
            request.end()
            tokens.append(job.stats().tokens)
        assert tokens == [3, 3 + 5]


def test_the_agent_of_another_process_follows_progress_by_the_plan_of_this_one(domain: str, child) -> None:
    service = child("""
        import herald, torch
        model = torch.nn.Linear(4, 4)
        job = herald.attach(model, priority="high", slo="500s")
        x = torch.zeros(1, 4)
        for _ in range(20):
            with job.request():
                model(x); model(x); model(x)
        request = job.begin()
        model(x)
        print("row", job.stats().row); input()
        request.end()
        request = job.begin()
        print("begun"); input()
    """)
    row = int(service.expect("row"))
    table = Table.open(domain)
    table.publish_limits(max_hold_ns=10**12, breather_ns=1, quantum_ns=250_000)  # nothing but progress opens it
    assert is_closed(table)  # strict, so far
    give_pace(table, row, lead_ns=1000 * 10**9)
    while is_closed(table):
        pass
    service.say("end")
    service.expect("begun")
    give_pace(table, row, lead_ns=MS, margin_ns=1000 * 10**9)
    while not is_closed(table):
        pass
