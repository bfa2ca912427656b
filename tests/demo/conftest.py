from __future__ import annotations

import pytest
from datasets import DatasetDict

from hf_prune.demo import load_docstrings


@pytest.fixture(scope="session")
def dataset() -> DatasetDict:
    return load_docstrings()
