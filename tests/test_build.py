"""Building and caching the native libraries: never a stale one, always a clear word."""

from dataclasses import replace
from pathlib import Path

import pytest

from herald import BuildError, build, native


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("HERALD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> build.Library:
    """A library that builds in no time."""
    source, header = tmp_path / "tiny.cpp", tmp_path / "tiny.hpp"
    header.write_text("#define ANSWER 42\n")
    source.write_text(
        '#include "tiny.hpp"\nextern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'
    )
    return build.Library("tiny", "a tiny library", (source,), (header,))


def test_a_library_is_built_once_with_a_line_of_progress(cache: Path, tiny: build.Library) -> None:
    lines: list[str] = []
    first = build.ensure(tiny, lines.append)
    assert first.parent == cache
    assert "a tiny library" in lines[0]
    lines.clear()
    assert build.ensure(tiny, lines.append) == first
    assert lines == []
    assert sorted(p.name for p in cache.iterdir()) == sorted([first.name, "build.lock"])


def test_a_changed_source_header_or_flag_is_another_library(cache: Path, tiny: build.Library) -> None:
    paths = {tiny.path}
    tiny.headers[0].write_text("#define ANSWER 43\n")
    paths.add(tiny.path)
    tiny.units[0].write_text(tiny.units[0].read_text() + "\n")
    paths.add(tiny.path)
    paths.add(replace(tiny, flags=("-DX",)).path)
    assert len(paths) == 4
    assert native.load(tiny).answer() == 43


def test_another_torch_is_another_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = build.hook_library().path
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert build.hook_library().path != before


def test_a_hook_copied_over_from_another_torch_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The binary says what it was built for, so even a renamed file is never used with another torch."""
    import torch

    from herald.hooks import native as hook

    loaded = hook.hook()
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    monkeypatch.setattr(native, "load", lambda library: loaded)
    hook.hook.forget()
    try:
        with pytest.raises(BuildError, match="built for torch.*this is 9.9.9"):
            hook.hook()
    finally:
        monkeypatch.undo()
        hook.hook.forget()
        hook.hook()


def test_a_broken_file_in_the_cache_is_rebuilt(cache: Path, tiny: build.Library) -> None:
    path = build.ensure(tiny)
    path.write_bytes(path.read_bytes()[:100])
    assert native.load(tiny).answer() == 42


def test_without_a_compiler_the_missing_tool_is_named(
    cache: Path, tiny: build.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BuildError, match=r"g\+\+ is not on PATH.*apt-get install g\+\+"):
        build.ensure(tiny)
    assert [p.name for p in cache.iterdir()] == ["build.lock"]


def test_a_compiler_that_was_asked_for_and_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache g++")
    with pytest.raises(BuildError, match=r"CXX = 'ccache g\+\+' is no program .*unset it"):
        build.compiler()


def test_a_prebuilt_library_needs_no_compiler(
    cache: Path, tiny: build.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.ensure(tiny)
    monkeypatch.setenv("PATH", "/nowhere")
    assert native.load(tiny).answer() == 42


def test_a_compile_error_shows_what_the_compiler_said(cache: Path, tiny: build.Library) -> None:
    tiny.units[0].write_text("this is not C++\n")
    with pytest.raises(BuildError, match="could not build a tiny library"):
        build.ensure(tiny)
    assert [p.name for p in cache.iterdir()] == ["build.lock"]


def test_a_cache_that_cannot_be_written_says_which_variable_to_set(
    tmp_path: Path, tiny: build.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HERALD_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="HERALD_CACHE_DIR"):
        build.ensure(tiny)


def test_processes_that_build_at_once_build_once(cache: Path, child) -> None:
    script = """
        from herald import native
        input()
        native.table()
        print("loaded")
    """
    racers = [child(script) for _ in range(3)]
    for racer in racers:
        racer.say("go")
    for racer in racers:
        racer.expect("loaded")
    assert len(list(cache.glob("*.so"))) == 1
    assert not list(cache.glob("build-*"))
