"""The import graph is the architecture: jobs and daemon meet in the table, and the daemon never waits for torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "herald").glob("*.py"))
HOOKS = sorted((ROOT / "hooks").rglob("*.py"))
SCHEDULER = sorted((ROOT / "scheduler").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))

# What a daemon or `herald status` consists of. (`herald.doctor` and `herald.build` look at torch when asked to.)
TORCH_FREE = (
    "herald",
    "herald.cli",
    "herald.config",
    "herald.status",
    "herald.bootstrap",
    "herald.profiling",
    "herald.profiles",
    "herald.classify",
    "herald.hooks.profiler",
    "herald.housekeeping",
    "herald.doctor",
    "herald.fakes",
    "herald.scheduler.daemon",
    "herald.scheduler.mps",
    "herald.scheduler.policies",
)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, *, when_loaded: bool = False) -> set[str]:
    """Modules that a file imports anywhere in it, or only those that loading it imports."""
    tree = ast.parse(path.read_text())
    return {name for node in _nodes(tree, when_loaded) for name in _modules(node)}


def _nodes(tree: ast.AST, when_loaded: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if when_loaded and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_types(node)):
            continue
        yield node
        yield from _nodes(node, when_loaded)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _modules(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(modules: set[str], *packages: str) -> set[str]:
    return {m for m in modules if any(m == p or m.startswith(f"{p}.") for p in packages)}


def test_the_test_sees_the_packages() -> None:
    assert CORE
    assert HOOKS
    assert SCHEDULER


@pytest.mark.parametrize("path", HOOKS, ids=named)
def test_hooks_never_import_the_scheduler(path: Path) -> None:
    assert not within(imports(path), "herald.scheduler", "herald.experiments")


@pytest.mark.parametrize("path", SCHEDULER, ids=named)
def test_the_scheduler_never_imports_hooks_or_torch(path: Path) -> None:
    assert not within(imports(path), "herald.hooks", "herald.experiments", "torch")


@pytest.mark.parametrize("path", CORE, ids=named)
def test_the_core_imports_torch_only_where_it_is_used(path: Path) -> None:
    assert not within(imports(path, when_loaded=True), "torch")


@pytest.mark.parametrize(
    "name", ["config", "settings", "durations", "errors", "layout", "native", "build", "table", "profiles"]
)
def test_the_vocabulary_knows_neither_side(name: str) -> None:
    seen = within(imports(ROOT / "herald" / f"{name}.py"), "herald.scheduler", "herald.experiments", "herald.hooks")
    assert seen <= ({"herald.hooks"} if name == "build" else set())  # to find the op hook's sources


@pytest.mark.parametrize("path", [p for p in (*CORE, *HOOKS, *SCHEDULER)], ids=named)
def test_nothing_that_ships_needs_experiments(path: Path) -> None:
    assert not within(imports(path), "herald.experiments")


@pytest.mark.parametrize("module", TORCH_FREE)
def test_it_loads_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_herald_status_runs_without_torch(domain: str) -> None:
    assert domain
    program = (
        "import sys; from herald.cli import main; code = main(['status']);"
        "sys.exit('torch is loaded' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
