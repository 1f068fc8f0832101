"""Builds and caches the native libraries: one direct g++ call each, on first use or ahead with `herald build`.

The cache key covers everything a stale binary could differ in: the sources, the flags, the processor and, for the op
hook, the exact torch build. The compiler is not part of the key, so that an image can ship prebuilt libraries and no
compiler. Files appear by atomic rename under a lock, so a reader never sees half a library.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from herald.errors import BuildError
from herald.settings import Settings

_CORE = Path(__file__).resolve().parent / "csrc"
_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra")
_COMPILE_LIMIT_S = 300


@dataclass(frozen=True)
class Library:
    """One shared library: what it is built from and what it is linked to."""

    name: str
    title: str  # for the progress line
    units: tuple[Path, ...]  # compiled side by side
    headers: tuple[Path, ...]
    flags: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hex digest that changes whenever a cached binary may no longer be right."""
        digest = hashlib.sha256()
        for part in (platform.machine(), platform.libc_ver()[0], *_FLAGS, *self.flags, *self.links):
            digest.update(part.encode() + b"\0")
        for source in (*self.units, *self.headers):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        return digest.hexdigest()[:20]

    @property
    def path(self) -> Path:
        """Where the built library lies, whether or not it exists yet."""
        return Settings.from_env().cache_dir / f"lib{self.name}-{self.key}.so"


def table_library() -> Library:
    """The torch-free library of the shared table."""
    return Library("herald_table", "the shared table", (_CORE / "table.cpp",), (_CORE / "table.hpp",))


def hook_library() -> Library:
    """The op hook, for the torch that this interpreter imports (imports torch)."""
    import torch

    home = Path(__file__).resolve().parent / "hooks" / "csrc"
    if not home.is_dir():  # an editable install maps herald.hooks elsewhere
        import herald.hooks

        home = Path(herald.hooks.__path__[0]).resolve() / "csrc"
    root = Path(torch.__file__).resolve().parent
    return Library(
        "herald_hook",
        f"the op hook for torch {torch.__version__}",
        (home / "ophook.cpp", home / "jobs.cpp", home / "recorder.cpp"),
        (*sorted(home.glob("*.hpp")), _CORE / "table.hpp"),
        flags=(
            "-DNDEBUG",  # as torch itself is built: it changes the layout of RecordFunction
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f'-DHERALD_TORCH="{torch_identity(torch)}"',
            f"-I{_CORE}",
            f"-isystem{root / 'include'}",
        ),
        links=(f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ldl"),
    )


def libraries() -> tuple[Library, Library]:
    """All that there are: jobs need both, the daemon the table's (imports torch)."""
    return table_library(), hook_library()


def torch_identity(torch: ModuleType) -> str:
    """Version and commit of a torch: what a binary built against it is good for."""
    return f"{torch.__version__}/{torch.version.git_version}"


def ensure(library: Library, progress: Callable[[str], None] | None = None) -> Path:
    """The path of a built library, building it if the cache has none. Raises BuildError."""
    path = library.path
    if path.exists():
        return path
    with _cache_lock(path.parent):
        if not path.exists():  # another process may have built it while this one waited
            _compile(library, path, progress or _to_stderr)
    return path


def build_all(progress: Callable[[str], None] = print) -> list[Path]:
    """Build every library ahead of time, for images without a compiler. Returns their paths. Raises BuildError."""
    paths = []
    for library in libraries():
        present = library.path.exists()
        paths.append(ensure(library, progress))
        if present:
            progress(f"herald: {library.title}: already built")
    return paths


def compiler() -> str:
    """The C++ compiler: $CXX, else g++ or c++ from PATH. Raises BuildError naming what to install."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("g++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    missing = (
        f"CXX = {wanted!r} is no program (give one without options, or unset it)" if wanted else "g++ is not on PATH"
    )
    raise BuildError(
        f"no C++ compiler: {missing}. Install one (Debian/Ubuntu: apt-get install g++; "
        "conda: conda install gxx), or run `herald build` where there is one and copy "
        f"{Settings.from_env().cache_dir} here (or point HERALD_CACHE_DIR at it)."
    )


def _compile(library: Library, path: Path, progress: Callable[[str], None]) -> None:
    cxx = compiler()
    progress(f"herald: building {library.title} (once, a few seconds) ...")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as scratch:
        objects = [f"{scratch}/{unit.stem}.o" for unit in library.units]
        compiled = [
            (cxx, *_FLAGS, *library.flags, "-c", str(unit), "-o", target)
            for unit, target in zip(library.units, objects, strict=True)
        ]
        linked = (cxx, "-shared", "-pthread", *objects, "-o", f"{scratch}/{path.name}", *library.links)
        _run_all(library, compiled)
        _run_all(library, [linked])
        Path(scratch, path.name).replace(path)
    progress(f"herald: built {path.name} in {time.monotonic() - started:.1f} s")


def _run_all(library: Library, commands: list[tuple[str, ...]]) -> None:
    """Run compiler commands side by side; all have ended when this returns or raises."""
    running = [(c, subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)) for c in commands]
    try:
        for command, process in running:
            output, _ = process.communicate(timeout=_COMPILE_LIMIT_S)
            if process.returncode != 0:
                raise BuildError(
                    f"{command[0]} could not build {library.title}:\n{output[-4000:]}\n{' '.join(command)}"
                )
    except subprocess.TimeoutExpired as e:
        raise BuildError(f"{e.cmd[0]} did not finish {library.title} within {_COMPILE_LIMIT_S} s") from e
    finally:
        for _, process in running:
            process.kill()
            process.wait()


@contextmanager
def _cache_lock(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (directory / "build.lock").open("w")
    except OSError as e:
        raise BuildError(f"cannot write {directory} ({e.strerror}): set HERALD_CACHE_DIR to a folder you own") from e
    with lock:
        if directory.stat().st_uid != os.getuid():
            raise BuildError(f"{directory} belongs to another user: set HERALD_CACHE_DIR to a folder you own")
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
