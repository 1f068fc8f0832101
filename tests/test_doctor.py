"""`herald doctor`: each no names its remedy, and the exit code says whether Herald can run here at all."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from herald import doctor
from herald.doctor import Check
from herald.domains import lock_path, segment_name
from herald.driver import Driver, Gpu, NoDriverError, probe
from herald.errors import BuildError, TableError
from herald.table import Table

H200 = Gpu(0, "NVIDIA H200", can_register_host_memory=True)


def a_driver(*, has_stream_wait: bool = True, gpu: Gpu = H200) -> Driver:
    return Driver("13.0", has_stream_wait, (gpu,))


def no_driver() -> Driver:
    raise NoDriverError("libcuda.so.1 cannot be loaded")


def test_here_every_check_comes_to_a_result() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "herald", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "cpu" in said["devices"]
    assert len(said["checks"]) == len(doctor.CHECKS)
    for check in said["checks"]:
        assert check["state"] in ("ok", "warn", "no")
        assert check["detail"]
        assert check["remedy"] or check["state"] == "ok"


def test_without_a_compiler_and_without_built_libraries_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HERALD_CACHE_DIR", str(tmp_path))
    check = doctor.check_compiler()
    assert (check.state, check.blocks) == ("no", ("cpu", "cuda"))
    assert "apt-get install g++" in check.remedy
    assert doctor.check_libraries().state == "warn"


def test_a_cache_that_is_no_folder_keeps_everything_from_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HERALD_CACHE_DIR", str(tmp_path / "file"))
    check = doctor.check_libraries()
    assert (check.state, check.blocks) == ("no", ("cpu", "cuda"))
    assert "HERALD_CACHE_DIR" in check.remedy


def test_built_libraries_make_up_for_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_is_built", lambda: True)
    assert (doctor.check_compiler().state, doctor.check_compiler().blocks) == ("warn", ())


def test_a_driver_is_described() -> None:
    check = doctor.check_driver(a_driver)
    assert (check.state, check.detail) == ("ok", "supports CUDA 13.0; 0: NVIDIA H200")
    assert doctor.check_stream_memory_operations(a_driver).state == "ok"


def test_no_driver_blocks_cuda_only() -> None:
    checks = [doctor.check_driver(no_driver), doctor.check_stream_memory_operations(no_driver)]
    assert [check.state for check in checks] == ["no", "no"]
    assert doctor.usable_devices(checks) == ("cpu",)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (a_driver(has_stream_wait=False), "cuStreamWaitValue32 is missing"),
        (a_driver(gpu=Gpu(0, "Old", can_register_host_memory=False)), "Old cannot register host memory"),
    ],
)
def test_a_gpu_that_cannot_be_gated_is_said(driver: Driver, said: str) -> None:
    check = doctor.check_stream_memory_operations(lambda: driver)
    assert (check.state, check.blocks) == ("no", ("cuda",))
    assert said in check.detail


def test_a_missing_driver_library_is_not_a_crash() -> None:
    with pytest.raises(NoDriverError, match=r"libabsent\.so\.7 cannot be loaded"):
        probe("libabsent.so.7")


def test_mps_is_found_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_mps().state == "warn"
    binary = tmp_path / "nvidia-cuda-mps-control"
    binary.touch(mode=0o755)
    assert doctor.check_mps() == Check("MPS", "ok", str(binary))


def test_shared_memory_that_is_missing_or_full_blocks_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert doctor.check_shared_memory(tmp_path).state == "ok"
    assert doctor.check_shared_memory(tmp_path / "absent").blocks == ("cpu", "cuda")
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    assert "0 bytes left" in doctor.check_shared_memory(tmp_path).detail


def test_record_locks_are_tried_between_two_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_record_locks(tmp_path).state == "ok"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(doctor, "_is_kept_out", lambda _path: False)
    assert doctor.check_record_locks(tmp_path).blocks == ("cpu", "cuda")


def test_a_domain_that_nobody_lives_in_is_pointed_out(domain: str) -> None:
    Table.open(domain)
    check = doctor.check_domains()
    assert check.state == "warn"
    assert f"herald reset --domain {domain}" in check.remedy


EXPERIMENT = """
    from pathlib import Path
    from herald.experiments.domain import PrivateDomain
    with PrivateDomain("doctor", Path()) as domain:
        print("between", domain.name)
        input()
    print("ended")
    input()
"""


def test_the_domain_of_a_running_experiment_is_in_use_between_its_jobs(child: Callable[..., Any]) -> None:
    experiment = child(EXPERIMENT)
    name = experiment.expect("between")
    check = doctor.check_domains()
    assert name in check.detail.partition("in use: ")[2].split(", ")
    with pytest.raises(TableError, match="or the experiment that it is of"):
        Table.unlink(name)
    experiment.say("end")
    experiment.expect("ended")
    assert name not in doctor.check_domains().detail
    assert not lock_path(name).exists()


def test_the_domain_of_a_dead_experiment_is_pointed_out(child: Callable[..., Any]) -> None:
    experiment = child(EXPERIMENT)
    name = experiment.expect("between")
    experiment.kill()
    try:
        assert f"herald reset --domain {name}`" in doctor.check_domains().remedy
    finally:
        assert Table.unlink(name)


def test_domains_in_use_are_told_beside_those_that_were_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_in_use", lambda domain: domain == "mine")
    for domain in ("left", "mine"):
        (tmp_path / segment_name(domain)[1:]).touch()
    check = doctor.check_domains(tmp_path)
    assert (check.state, check.detail) == ("warn", "nobody lives in: left; in use: mine")
    assert check.remedy == "harmless; remove with `herald reset --domain left`"


def test_domains_that_cannot_be_looked_into_are_not_said_to_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(domain: str) -> None:
        raise BuildError("no C++ compiler")

    monkeypatch.setattr(doctor.DomainLock, "of", refuse)
    (tmp_path / segment_name("mine")[1:]).touch()
    check = doctor.check_domains(tmp_path)
    assert (check.state, check.detail) == ("warn", "it cannot be told who lives in: mine")


def test_other_files_are_no_domains(tmp_path: Path) -> None:
    (tmp_path / "someone-else").touch()
    (tmp_path / f"{segment_name('x')[1:]}.lock").touch()
    assert doctor.check_domains(tmp_path) == Check("domains", "ok", "none")


def test_the_report_reads_well_at_80_columns() -> None:
    out = StringIO()
    checks = [Check("compiler", "no", "none [here]", "install g++", ("cpu", "cuda")), Check("MPS", "ok", "/usr/bin/x")]
    doctor.render(checks, Console(file=out, width=80))
    assert out.getvalue().splitlines() == [
        "no   compiler: none [here]",
        "     install g++",
        "ok   MPS: /usr/bin/x",
        "Herald can run here on: nothing yet; see each no above",
    ]
