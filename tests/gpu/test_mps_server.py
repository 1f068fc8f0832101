"""MPS for real: NVIDIA's control daemon in private directories, with a CUDA process as its client."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from herald.scheduler.mps import BINARY, MpsServer

CLIENT = """
import sys, torch
torch.zeros(1, device="cuda")
torch.cuda.synchronize()
print("attached", flush=True)
sys.stdin.read()
"""


pytestmark = pytest.mark.skipif(shutil.which(BINARY) is None, reason=f"{BINARY} is not on PATH")


def test_a_client_attaches_is_seen_and_keeps_the_server_alive() -> None:
    server = MpsServer("gpu-test", home=Path(f"/tmp/herald-gpu-test-{os.getpid()}"))
    server.start()
    try:
        environment = os.environ | {"CUDA_MPS_PIPE_DIRECTORY": str(server.pipe_dir)}
        command = [sys.executable, "-c", CLIENT]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as client:
            assert client.stdout
            assert client.stdout.readline() == "attached\n"
            assert client.pid in server.clients()
            assert not server.stop()
            client.communicate("")
    finally:
        assert server.stop()
    assert not server.pipe_dir.exists()
