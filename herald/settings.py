"""Every environment variable that Herald reads, in one typed place."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from herald.errors import ConfigError

NAME_BYTES = 47  # that a row of the table holds
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}", re.ASCII)
_LOG_LEVELS = ("debug", "info", "warning", "error")
_SWITCH = {"": False, "0": False, "1": True}


@dataclass(frozen=True)
class Settings:
    """What the environment says; an argument given in code wins over it."""

    domain: str  # HERALD_DOMAIN: which jobs meet; one segment per domain and user
    config: Path | None  # HERALD_CONFIG: the TOML file where none is given
    log_level: str  # HERALD_LOG
    disabled: bool  # HERALD_DISABLE=1: attach does nothing
    cache_dir: Path  # HERALD_CACHE_DIR: where native libraries are built

    @classmethod
    def from_env(cls) -> Self:
        """Read and check the environment. Raises ConfigError."""
        env = os.environ
        config = env.get("HERALD_CONFIG")
        log_level = env.get("HERALD_LOG", "info").lower()
        if log_level not in _LOG_LEVELS:
            raise ConfigError(f"HERALD_LOG = {log_level!r}: allowed are {', '.join(_LOG_LEVELS)}")
        switch = env.get("HERALD_DISABLE", "")
        if switch not in _SWITCH:
            raise ConfigError(f"HERALD_DISABLE = {switch!r}: allowed are 0 and 1")
        return cls(
            domain=check_domain(env.get("HERALD_DOMAIN", "default"), setting="HERALD_DOMAIN"),
            config=Path(config) if config else None,
            log_level=log_level,
            disabled=_SWITCH[switch],
            cache_dir=_cache_dir(),
        )


def check_domain(domain: str, *, setting: str = "domain") -> str:
    """The domain, if its name can be part of a file's name. Raises ConfigError."""
    if not _DOMAIN.fullmatch(domain):
        raise ConfigError(
            f"{setting} = {domain!r}: a domain is 1 to 48 letters, digits, '-' or '_', starting with a letter or digit"
        )
    return domain


def check_name(name: object) -> str:
    """A job's name, if a table can show it and tell it from others. Raises ConfigError."""
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name.encode()) <= NAME_BYTES:
        raise ConfigError(f"name = {name!r}: a job's name is 1 to {NAME_BYTES} bytes of printable text")
    return name


def _cache_dir() -> Path:
    env = os.environ
    chosen = env.get("HERALD_CACHE_DIR") or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herald"
    return Path(chosen).expanduser().absolute()
