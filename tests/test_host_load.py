"""What a row says of its host."""

from pathlib import Path

from herald.experiments.host_load import CoreTime


def test_stolen_time_counts_as_busy_and_waiting_for_a_disk_does_not(tmp_path: Path) -> None:
    begin, end = tmp_path / "begin", tmp_path / "end"
    begin.write_text("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    end.write_text("cpu  150 10 120 850 30 5 5 30 99 99\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert CoreTime.read(begin).until(CoreTime.read(end)) == {"busy": 0.6, "stolen": 0.15}


def test_no_time_at_all_is_no_share() -> None:
    now = CoreTime.read()
    assert now.until(now) == {"busy": 0.0, "stolen": 0.0}
