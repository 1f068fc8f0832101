"""The op recorder on CPU: what ran, inside what, for how long, on which memory; and nothing once it is left."""

import json
import os
import threading

import pytest
import torch

from herald import ConfigError
from herald.hooks import launches
from herald.hooks.profiling.traffic import StorageNumbers, traffic
from herald.hooks.recorder import BACKWARD, MARK, OVERWRITTEN, USER, Recorder, Recording

CPU = torch.device("cpu")


def record(step, *, detail: bool = False) -> Recording:
    recorder = Recorder(CPU, detail=detail)
    with recorder:
        step()
    return recorder.result()


def names(recording: Recording) -> list[str]:
    return [recording.signatures[event["signature"]].name for event in recording.events]


def event_of(recording: Recording, name: str):
    return recording.events[names(recording).index(name)]


def tensors_of(recording: Recording, event):
    first = event["first_tensor"]
    return recording.tensors[first : first + event["num_in"] + event["num_out"]]


def test_ops_are_recorded_with_their_signature_and_nothing_after() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    recording = record(lambda: a @ b)
    again = record(lambda: None)
    a @ b
    mm = event_of(recording, "aten::mm")
    assert recording.signatures[mm["signature"]].text == "aten::mm(Float[2, 3], Float[3, 4])"
    assert recording.signatures[mm["signature"]].numel == 18
    assert len(again.events) == 0


def test_an_event_lies_inside_its_parent_and_self_time_is_what_is_left() -> None:
    recording = record(lambda: torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)))
    linear, addmm = event_of(recording, "aten::linear"), event_of(recording, "aten::addmm")
    assert recording.events[addmm["parent"]] == linear
    assert linear["begin_ns"] <= addmm["begin_ns"] <= addmm["end_ns"] <= linear["end_ns"]
    for place, event in enumerate(recording.events):
        inside = recording.events[recording.events["parent"] == place]
        total = event["end_ns"] - event["begin_ns"]
        assert event["self_ns"] == total - (inside["end_ns"] - inside["begin_ns"]).sum()


def test_what_only_calls_others_has_no_device_time() -> None:
    recording = record(lambda: torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).view(8))
    assert event_of(recording, "aten::linear")["device"] == -1
    assert event_of(recording, "aten::view")["device"] == -1
    assert event_of(recording, "aten::mm")["device"] == 0


def test_forward_and_backward_share_a_sequence_number() -> None:
    weight = torch.ones(3, 3, requires_grad=True)
    recording = record(lambda: (torch.ones(2, 3) @ weight).sum().backward())
    node = event_of(recording, "MmBackward0")
    assert node["scope"] == BACKWARD
    assert node["sequence"] == event_of(recording, "aten::matmul")["sequence"] >= 0


def test_other_threads_and_user_ranges_are_recorded() -> None:
    def step() -> None:
        with torch.profiler.record_function("mine"):
            torch.ones(2).add(1)
        thread = threading.Thread(target=lambda: torch.ones(2).mul(2))
        thread.start()
        thread.join()

    recording = record(step)
    assert event_of(recording, "mine")["scope"] == USER
    assert event_of(recording, "aten::mul")["thread"] != event_of(recording, "aten::add")["thread"]


def test_marks_are_events_around_what_runs_between() -> None:
    recorder = Recorder(CPU)
    with recorder:
        recorder.mark_begin("layers.0")
        torch.ones(2).add(1)
        recorder.mark_end()
    recording = recorder.result()
    mark = event_of(recording, "layers.0")
    assert mark["scope"] == MARK
    assert recording.events[event_of(recording, "aten::add")["parent"]] == mark


def test_detail_tells_what_is_read_and_written_by_storage() -> None:
    a, b = torch.ones(4), torch.ones(4)

    def step() -> None:
        a.view(2, 2)
        c = a + b
        c.mul_(a)

    recording = record(step, detail=True)
    view = tensors_of(recording, event_of(recording, "aten::view"))
    assert view["written"].tolist() == [0, 0]
    added = tensors_of(recording, event_of(recording, "aten::add"))
    assert added["written"].tolist() == [0, 0, 1]
    assert added["bytes"].tolist() == [16, 16, 16]
    multiplied = tensors_of(recording, event_of(recording, "aten::mul_"))
    assert multiplied["written"].tolist() == [1, 0, 1]
    assert multiplied["storage"].tolist() == [added["storage"][2], added["storage"][0], added["storage"][2]]


def test_what_is_given_as_out_is_written_and_not_read() -> None:
    a, b = torch.ones(4, 4), torch.empty(4, 4)
    recording = record(lambda: torch.mm(a, a, out=b), detail=True)
    product = tensors_of(recording, event_of(recording, "aten::mm"))
    assert product["written"].tolist() == [0, 0, OVERWRITTEN, 1]
    moved = traffic(recording, names(recording).index("aten::mm"), StorageNumbers())
    assert (moved.bytes_in, moved.bytes_out) == (64, 64)
    assert set(moved.writes) < set(moved.reads)  # as of any op that writes in place


def test_a_freed_storage_is_not_taken_for_a_new_one() -> None:
    recording = record(lambda: [torch.ones(64).add(i) for i in range(8)][-1], detail=True)
    added = [e for e, name in zip(recording.events, names(recording), strict=True) if name == "aten::add"]
    assert len({int(tensors_of(recording, e)["storage"][-1]) for e in added}) == 8


def test_detail_gives_arguments_for_flop_formulas() -> None:
    recording = record(lambda: torch.ones(2, 3) @ torch.ones(3, 4), detail=True)
    args = json.loads(recording.signatures[event_of(recording, "aten::mm")["signature"]].args or "")
    assert [tensor["shape"] for tensor in args["in"]] == [[2, 3], [3, 4]]
    assert args["out"][0] == {"shape": [2, 4], "dtype": "Float", "bytes": 32}


def test_one_recording_at_a_time() -> None:
    with Recorder(CPU), pytest.raises(ConfigError, match="another recording is running"), Recorder(CPU):
        pass
    assert len(record(lambda: torch.ones(1).add(1)).events) > 0


def test_an_exception_ends_the_recording() -> None:
    with pytest.raises(ZeroDivisionError), Recorder(CPU):
        raise ZeroDivisionError
    assert len(record(lambda: torch.ones(1).add(1)).events) > 0


def test_a_recording_is_read_before_the_next_one_begins() -> None:
    first, second = Recorder(CPU), Recorder(CPU)
    with first, pytest.raises(ConfigError, match="it runs still"):
        first.result()
    with second:
        torch.ones(1).add(1)
    with pytest.raises(ConfigError, match="another one has begun"):
        first.result()
    assert "aten::add" in names(second.result())


def test_a_recording_that_cannot_announce_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(launches, "start", fail)
    with pytest.raises(ZeroDivisionError), Recorder(CPU):
        pass
    monkeypatch.undo()
    assert len(record(lambda: torch.ones(1).add(1)).events) > 0


def test_recordings_start_and_stop_under_threads_that_run_ops(child) -> None:
    """Nobody may read or free what a thread is in the middle of writing: in a process of its own, which would crash."""
    process = child("""
        import threading, torch
        from herald.hooks.recorder import Recorder

        over, one = threading.Event(), torch.ones(4)

        def work():
            while not over.is_set():
                one.add(1)

        threads = [threading.Thread(target=work) for _ in range(3)]
        [thread.start() for thread in threads]
        for _ in range(400):
            recorder = Recorder(torch.device("cpu"))
            with recorder:
                [one.mul(2) for _ in range(100)]
            assert len(recorder.result().events) >= 100
        over.set()
        [thread.join() for thread in threads]
        print("whole")
    """)
    process.expect("whole")


def test_a_forked_child_records_anew() -> None:
    recorder = Recorder(CPU)
    with recorder:
        torch.ones(1).add(1)
        child = os.fork()
        if child == 0:
            try:
                recorder.__exit__(None, None, None)
                with pytest.raises(ConfigError, match="nothing to read"):
                    recorder.result()
                found = names(record(lambda: torch.ones(1).mul(2)))
                os._exit(0 if "aten::mul" in found and "aten::add" not in found else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert "aten::add" in names(recorder.result())
