"""Which device a job runs on, under the name that all processes know it by."""

import itertools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from herald.errors import AttachError, ConfigError

if TYPE_CHECKING:
    import torch

_MPS_CONTROL = "nvidia-cuda-mps-control"
_MPS_LIMIT_S = 10


@dataclass(frozen=True)
class JobDevice:
    """A job's device. CUDA indices differ between processes (CUDA_VISIBLE_DEVICES), UUIDs do not."""

    name: str  # "cpu" or "GPU-<uuid>"
    cuda_index: int | None  # None: CPU
    mps: bool  # this process is a client of an MPS server

    @property
    def is_cuda(self) -> bool:
        """Whether ops are gated on their stream rather than on their thread."""
        return self.cuda_index is not None


def resolve(device: "str | torch.device | None", model: "torch.nn.Module | None") -> JobDevice:
    """The device given, else the model's, else the current GPU, else the CPU. Raises ConfigError or AttachError."""
    import torch

    chosen = parse(device) if device is not None else _of_model(model)
    if chosen is None:
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.type == "cpu":
        return JobDevice("cpu", None, False)
    if not torch.cuda.is_available():
        raise AttachError(
            f"device = {str(chosen)!r}: this torch ({torch.__version__}) sees no GPU; see `herald doctor`"
        )
    index = chosen.index if chosen.index is not None else torch.cuda.current_device()
    if not 0 <= index < torch.cuda.device_count():
        raise ConfigError(f"device = {str(chosen)!r}: this process sees {torch.cuda.device_count()} GPU(s)")
    torch.zeros(1, device=torch.device("cuda", index))  # creates the context that host memory is registered with
    return JobDevice(gpu_name(index), index, is_mps_client())


def parse(device: "str | torch.device") -> "torch.device":
    """The device meant, whether it is there or not. Raises ConfigError for one that Herald does not schedule."""
    import torch

    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise ConfigError(f"device = {device!r} is not a device: give 'cpu', 'cuda' or 'cuda:N'") from e
    return _scheduled(parsed)


def check_model(model: object) -> None:
    """Raises ConfigError."""
    import torch

    if model is not None and not isinstance(model, torch.nn.Module):
        raise ConfigError(f"model = {model!r}: give a torch.nn.Module, or leave it out")


def gpu_name(index: int) -> str:
    """A GPU's UUID as the driver writes it."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def is_mps_client() -> bool:
    """Whether a running MPS server lists this process; asks the control daemon, which takes some milliseconds."""
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    if not (pipe / "control").exists():
        return False
    servers = _ask_mps("get_server_list").split()
    return any(
        str(os.getpid()) in _ask_mps(f"get_client_list {server}").split() for server in servers if server.isdigit()
    )


def _ask_mps(command: str) -> str:
    try:
        return subprocess.run(
            [_MPS_CONTROL], input=f"{command}\n", capture_output=True, text=True, timeout=_MPS_LIMIT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _scheduled(device: "torch.device") -> "torch.device":
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {str(device)!r}: Herald schedules 'cpu' and 'cuda' devices")
    return device


def _of_model(model: "torch.nn.Module | None") -> "torch.device | None":
    if model is None:
        return None
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((_scheduled(tensor.device) for tensor in tensors), None)
