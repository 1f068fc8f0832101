"""GPU tests are run by hand on a machine that has one: `python -m pytest tests/gpu`. Elsewhere they skip."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip everything in this folder, with the reason, where torch sees no GPU."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "tests/gpu/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__} sees no GPU here"))
