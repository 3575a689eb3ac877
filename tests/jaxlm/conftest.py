"""Models that transformers made, shared by the tests that compare with it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_models(reference, tmp_path_factory) -> Path:
    """A folder of small random models with what transformers computes; see tests/reference/make_models.py."""
    folder = tmp_path_factory.mktemp("reference-models")
    reference("make_models.py", folder)
    return folder
