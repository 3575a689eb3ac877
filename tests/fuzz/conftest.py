"""Runs that never were are those of tests/helpers."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "helpers"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every target as slow: how long it takes is said from outside."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("slow")
