"""The forwards of an attached model: which are requests, which are steps of one, and what detaching leaves."""

import copy
import inspect
import pickle
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import herald
from herald.hooks.service import HighJob
from herald.table import Table
from tests.gates import is_closed


@pytest.fixture
def table(domain: str) -> Table:
    return Table.open(domain)


def test_each_outermost_forward_is_one_request(table: Table) -> None:
    inner = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(inner, torch.nn.ReLU(), inner)
    with herald.attach(model, priority="high") as job:
        model(torch.randn(2, 4))
        model.forward(torch.randn(2, 4))
        assert job.stats().requests_done == 2
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 5))
        assert job.stats().requests_done == 3
        assert not is_closed(table)


def test_forwards_inside_an_explicit_request_are_part_of_it(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high") as job:
        with job.request():
            for _ in range(5):
                model(torch.randn(2, 4))
        assert job.stats().requests_done == 1


def test_a_model_that_calls_itself_is_one_request(table: Table) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, again: bool = True) -> torch.Tensor:
            return self(x, again=False) if again else x

    model = Twice()
    with herald.attach(model, priority="high", device="cpu") as job:
        model(torch.randn(2))
        assert job.stats().requests_done == 1


def test_a_model_is_attached_once(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high"):
        with pytest.raises(herald.AttachError, match="attached already"):
            herald.attach(model, priority="high")
        assert len(table.jobs()) == 1
    assert "forward" not in model.__dict__


def test_a_forward_that_cannot_be_replaced_is_an_error_that_leaves_nothing(table: Table) -> None:
    class Fixed(torch.nn.Module):
        forward = property(lambda self: lambda x: x)

    with pytest.raises(herald.AttachError, match="Fixed cannot be wrapped"):
        herald.attach(Fixed(), priority="high", device="cpu")
    assert table.jobs() == []


def test_a_model_without_checkpoints_to_make_is_left_as_it_was(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: HighJob, model: torch.nn.Module) -> None:
        raise ZeroDivisionError

    model = torch.nn.Linear(4, 4)
    monkeypatch.setattr(HighJob, "_make_checkpoints", fail)
    with pytest.raises(herald.AttachError):
        herald.attach(model, priority="high")
    assert "forward" not in model.__dict__
    assert table.jobs() == []


def test_an_attached_forward_keeps_its_signature(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    before = inspect.signature(model.forward)
    with herald.attach(model, priority="high"):
        assert inspect.signature(model.forward) == before


def test_detach_leaves_the_model_as_it_was(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    before = dict(model.__dict__)
    job = herald.attach(model, priority="high")
    assert "forward" in model.__dict__
    job.detach()
    assert dict(model.__dict__) == before
    job.detach()
    model(torch.randn(2, 4))
    assert job.stats().requests_done == 0


def test_detach_keeps_what_someone_else_wrapped_around_the_model(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    job = herald.attach(model, priority="high")
    ours = model.forward
    model.forward = lambda x: ours(x) + 1
    theirs = model.forward
    job.detach()
    assert model.forward is theirs
    x = torch.zeros(1, 4)
    assert torch.equal(model(x), torch.nn.functional.linear(x, model.weight, model.bias) + 1)


def test_copies_and_pickles_of_an_attached_model_are_ordinary_models(table: Table) -> None:
    model = torch.nn.Linear(4, 4)
    with herald.attach(model, priority="high") as job:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with torch.no_grad():
                other.weight.zero_()
                other.bias.fill_(1)
            assert torch.equal(other(torch.randn(2, 4)), torch.ones(2, 4))
        assert job.stats().requests_begun == 0


class CopiesItself(torch.nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> "CopiesItself":
        other = CopiesItself.__new__(CopiesItself)
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other


def test_a_model_that_copies_itself_unseen_is_an_error_while_it_is_attached(table: Table) -> None:
    model = CopiesItself(1, 1)
    with herald.attach(model, priority="high"), pytest.raises(herald.AttachError, match="CopiesItself copies itself"):
        copy.deepcopy(model)
    assert copy.deepcopy(model)(torch.ones(1)).shape == (1,)


def test_what_is_pickled_of_an_attached_model_needs_no_herald(table: Table) -> None:
    model, owner = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    owner.forward = partial(doubled, owner)
    for each in (model, owner):
        with herald.attach(each, priority="high"):
            assert b"herald.hooks" not in pickle.dumps(each)


def doubled(model: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return 2 * torch.nn.Linear.forward(model, x)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(lambda model: types.MethodType(doubled, model), id="method"),
        pytest.param(lambda model: partial(doubled, model), id="partial"),  # as accelerate's hooks
    ],
)
def test_a_copy_keeps_the_forward_that_an_instance_had_of_its_own(
    table: Table, own: Callable[[torch.nn.Linear], Any]
) -> None:
    model = torch.nn.Linear(1, 1)
    model.forward = own(model)
    with herald.attach(model, priority="high") as job:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.weight.zero_()
            other.bias.fill_(3)
        assert other(torch.ones(1)).item() == 6
        assert job.stats().requests_begun == 0


def test_a_copy_keeps_a_function_as_it_is(table: Table) -> None:
    model = torch.nn.Linear(1, 1)
    model.forward = forward = lambda x: x + 7
    with herald.attach(model, priority="high") as job:
        assert copy.deepcopy(model).forward is forward
        assert job.stats().requests_begun == 0


def test_a_pickle_keeps_the_forward_that_an_instance_had_of_its_own(table: Table) -> None:
    model = torch.nn.Linear(1, 1)
    model.forward = partial(doubled, model)
    with herald.attach(model, priority="high") as job:
        other = pickle.loads(pickle.dumps(model))
        with torch.no_grad():
            other.weight.zero_()
            other.bias.fill_(3)
        assert other(torch.ones(1)).item() == 6
        assert job.stats().requests_begun == 0


def undisguised(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def inner(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return forward(model, x)

    return inner


class Decorated(torch.nn.Module):
    @undisguised
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Static(torch.nn.Module):
    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.mark.parametrize("model", [Decorated(), Static()], ids=["decorated", "static"])
def test_copies_and_pickles_have_their_classs_forward_whatever_it_is(table: Table, model: torch.nn.Module) -> None:
    x = torch.ones(1)
    expected = model(x)
    with herald.attach(model, priority="high", device="cpu") as job:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)
        assert job.stats().requests_begun == 0


def test_a_forward_with_attributes_is_run_whatever_they_are_called(table: Table) -> None:
    """Another library's stand-in may keep what it stands in for under the name that Herald's uses."""

    class Doubled:
        def __init__(self, original: Callable[..., torch.Tensor]) -> None:
            self.original = original

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.original(x)

    model = torch.nn.Identity()
    model.forward = Doubled(model.forward)
    with herald.attach(model, priority="high", device="cpu") as job:
        assert model(torch.ones(1)).item() == 2
        assert job.stats().requests_done == 1


@pytest.mark.parametrize("compile_first", [True, False])
def test_a_compiled_model_makes_requests_whichever_came_first(table: Table, compile_first: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    x = torch.randn(2, 4)
    expected = model(x)
    if compile_first:
        compiled = torch.compile(model, backend="eager")
        job = herald.attach(compiled, priority="high")
    else:
        job = herald.attach(model, priority="high")
        compiled = torch.compile(model, backend="eager")
    with job:
        for _ in range(3):
            assert torch.equal(compiled(x), expected)
        assert job.stats().requests_done == 3
