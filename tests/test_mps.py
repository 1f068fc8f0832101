"""The domain's MPS server, against a stand-in for NVIDIA's control binary."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from herald.errors import DaemonError
from herald.scheduler import mps
from herald.scheduler.mps import Answer, MpsError, MpsServer
from herald.table import Table

# State is kept where the real one keeps its sockets. FAKE_MPS breaks it on purpose.
FAKE = r"""#!/bin/sh
state="$CUDA_MPS_PIPE_DIRECTORY"
if [ "$1" = -d ]; then
  [ "$FAKE_MPS" = refuses ] && { echo "GPU is in exclusive use"; exit 1; }
  env | grep ^CUDA_MPS > "$CUDA_MPS_LOG_DIRECTORY/control.log"
  [ "$FAKE_MPS" = silent ] || touch "$state/running"
  exit 0
fi
[ -e "$state/running" ] || { echo "Cannot find MPS control daemon process"; exit 1; }
read -r command argument rest
case "$command" in
  get_server_list) [ -e "$state/server" ] && echo 4242; exit 0;;
  start_server) [ "$FAKE_MPS" = no_server ] || touch "$state/server";;
  get_client_list) [ "$argument" = 4242 ] && [ -e "$state/clients" ] && cat "$state/clients"; exit 0;;
  quit) rm "$state/running";;
  *) exit 3;;
esac
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    binary = tmp_path / "bin" / mps.BINARY
    binary.parent.mkdir()
    binary.write_text(FAKE)
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")
    return binary


@pytest.fixture
def new_server(tmp_path: Path) -> Callable[[], MpsServer]:
    return lambda: MpsServer("test", home=tmp_path / "home", pause=lambda _seconds: None)


@pytest.fixture
def server(control: Path, new_server: Callable[[], MpsServer]) -> MpsServer:
    assert control.exists()
    return new_server()


def test_it_starts_in_private_directories_and_leaves_none(server: MpsServer) -> None:
    server.start()
    for directory in (server.pipe_dir, server.log_dir, server.pipe_dir.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert server.clients() == ()
    assert server.stop()
    assert not server.pipe_dir.parent.exists()


def test_a_server_is_up_before_the_first_client(server: MpsServer) -> None:
    server.start()
    assert (server.pipe_dir / "server").exists()


def test_client_settings_of_the_environment_do_not_become_defaults_of_the_server(
    server: MpsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "10")
    server.start()
    seen = (server.log_dir / "control.log").read_text()
    assert f"CUDA_MPS_PIPE_DIRECTORY={server.pipe_dir}" in seen
    assert "PERCENTAGE" not in seen


def test_clients_are_those_of_the_server(server: MpsServer) -> None:
    server.start()
    (server.pipe_dir / "clients").write_text("11\n12\n")
    assert server.clients() == (11, 12)


def test_a_server_with_clients_is_left_to_them(server: MpsServer) -> None:
    server.start()
    (server.pipe_dir / "clients").write_text("11\n")
    assert not server.stop()
    assert (server.pipe_dir / "running").exists()


def test_a_client_that_is_just_leaving_is_waited_for(control: Path, tmp_path: Path) -> None:
    assert control.exists()
    server = MpsServer(
        "test", home=tmp_path / "home", pause=lambda _seconds: (server.pipe_dir / "clients").unlink(missing_ok=True)
    )
    server.start()
    (server.pipe_dir / "clients").write_text("11\n")
    assert server.stop()


def test_the_next_daemon_adopts_the_server_of_one_that_died(
    server: MpsServer, new_server: Callable[[], MpsServer]
) -> None:
    server.start()
    (server.pipe_dir / "clients").write_text("11\n")
    successor = new_server()
    successor.start()
    assert successor.clients() == (11,)


def test_leftovers_of_a_dead_server_do_not_matter(server: MpsServer) -> None:
    server.start()
    (server.pipe_dir / "running").unlink()
    server.start()
    assert server.clients() == ()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("refuses", "GPU is in exclusive use"),
        ("silent", "control daemon does not answer"),
        ("no_server", "no server came up"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    server: MpsServer, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setenv("FAKE_MPS", fault)
    with pytest.raises(MpsError, match=said):
        server.start()
    assert not server.pipe_dir.parent.exists()


def test_a_missing_binary_is_named_with_the_setting(
    new_server: Callable[[], MpsServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DaemonError, match=r"mps\.enabled = true, but nvidia-cuda-mps-control is not on PATH"):
        new_server().start()


def test_a_binary_that_hangs_is_given_up(control: Path) -> None:
    control.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(MpsError, match=r"get_server_list` took over 0\.05 s"):
        mps.run_binary((), env=dict(os.environ), stdin="get_server_list\n", timeout_s=0.05)


def test_someone_elses_directory_is_refused(server: MpsServer, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o777)
    (tmp_path / "home").chmod(0o777)
    with pytest.raises(MpsError, match="not a private directory"):
        server.start()


def test_a_path_too_long_for_a_socket_is_refused(control: Path, tmp_path: Path) -> None:
    assert control.exists()
    with pytest.raises(MpsError, match="Unix socket"):
        MpsServer("d" * 48, home=tmp_path / ("long" * 20)).start()


def test_the_runner_is_a_seam(tmp_path: Path) -> None:
    """No process at all: every command goes through the injected runner, each with a time limit."""
    asked: list[str] = []

    def run(arguments: tuple[str, ...], *, env: Mapping[str, str], stdin: str, timeout_s: float) -> Answer:
        assert env["CUDA_MPS_PIPE_DIRECTORY"]
        assert timeout_s > 0
        asked.append(" ".join((*arguments, stdin.strip())).strip())
        return Answer(0, "77" if "get_server_list" in stdin else "")

    server = MpsServer("test", home=tmp_path / "home", run=run)
    server.start()
    assert server.clients() == ()
    assert asked == [
        "-d",
        "get_server_list",
        f"start_server -uid {os.getuid()}",
        "get_server_list",
        "get_server_list",
        "get_client_list 77",
    ]


class DaemonProcess:
    """`herald daemon` with MPS on, its output, and how it ends."""

    def __init__(self, config: Path) -> None:
        command = [sys.executable, "-m", "herald", "daemon", "--config", str(config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if "running: domain" in line:
                return
        raise AssertionError("".join(self.lines))

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate()
        self.lines += rest.splitlines()
        return self.process.returncode

    def said(self, part: str) -> bool:
        return any(part in line for line in self.lines)


@dataclass(frozen=True)
class Domain:
    """A domain whose config asks for MPS."""

    name: str
    config: Path
    own: Path  # the directory of its MPS


@pytest.fixture
def mps_domain(control: Path, domain: str, tmp_path: Path) -> Iterator[Domain]:
    assert control.exists()
    config = tmp_path / "herald.toml"
    config.write_text("[mps]\nenabled = true\n")
    own = MpsServer(domain).pipe_dir.parent
    yield Domain(domain, config, own)
    shutil.rmtree(own, ignore_errors=True)


def test_mps_survives_a_killed_daemon_and_ends_with_one_that_is_stopped(mps_domain: Domain) -> None:
    first = DaemonProcess(mps_domain.config)
    published = Table.open(mps_domain.name, create=False).header.mps_pipe.decode()
    assert published == str(mps_domain.own / "pipe")
    first.end(signal.SIGKILL)
    assert (mps_domain.own / "pipe" / "running").exists()
    second = DaemonProcess(mps_domain.config)
    assert second.said("mps: adopted the server")
    assert second.end(signal.SIGTERM) == 0
    assert second.said("mps: stopped")
    assert not mps_domain.own.exists()
    assert not [path for path in Path("/dev/shm").iterdir() if mps_domain.name in path.name]


def test_mps_that_goes_on_for_its_clients_stays_published(mps_domain: Domain) -> None:
    daemon = DaemonProcess(mps_domain.config)
    table = Table.open(mps_domain.name, create=False)
    (mps_domain.own / "pipe" / "clients").write_text("11\n")
    assert daemon.end(signal.SIGTERM) == 0
    assert daemon.said("mps: goes on for its clients (pids 11)")
    assert (table.header.policy, table.header.mps_pipe.decode()) == (b"", str(mps_domain.own / "pipe"))
