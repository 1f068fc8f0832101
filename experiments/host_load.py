"""What the cores of the host did meanwhile, from /proc/stat (proc_stat(5)): a row is to tell of a host that stalls."""

from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")


@dataclass(frozen=True)
class CoreTime:
    """Of all cores since boot, in clock ticks."""

    total: int
    idle: int  # with nothing to do, or waiting for a disk
    stolen: int  # for other virtual machines

    @classmethod
    def read(cls, path: Path = STAT) -> "CoreTime":
        """Now."""
        user, nice, system, idle, iowait, irq, softirq, steal, *_ = map(
            int, path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        )
        return cls(user + nice + system + idle + iowait + irq + softirq + steal, idle + iowait, steal)

    def until(self, end: "CoreTime") -> dict[str, float]:
        """Shares of the time of all cores: ``busy`` (stolen or not), ``stolen``."""
        total, idle = end.total - self.total, end.idle - self.idle
        stolen = end.stolen - self.stolen
        return {"busy": round((total - idle) / max(1, total), 4), "stolen": round(stolen / max(1, total), 4)}
