from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before transformers is imported anywhere: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from datasets import Dataset

from tests.small_models import Batch, case

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latency tables go to a folder of this run, and small models run on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_PRUNE_CACHE", str(tmp_path_factory.mktemp("hf_prune_cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data; tests that need it are marked `real`."""
    name = os.environ.get("HF_PRUNE_SHARED")
    if not name:
        pytest.skip("HF_PRUNE_SHARED does not name a folder with real models and data")
    folder = Path(name)
    if not (folder / "models").is_dir() or not (folder / "data").is_dir():
        pytest.skip(f"HF_PRUNE_SHARED={name} has no models and data folders")
    return folder


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Runs code in a new Python process, which imports hf_prune only if the code does; returns what it prints."""

    def run(code: str, *arguments: object) -> str:
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        finished = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


@pytest.fixture
def batches() -> list[Batch]:
    """Six small batches for a BERT classifier."""
    return [case("bert", "classification").batch(seed) for seed in range(6)]


@pytest.fixture
def rows(batches: list[Batch]) -> Dataset:
    """The same examples as the rows of a data set."""
    merged = {name: torch.cat([batch[name] for batch in batches]).tolist() for name in batches[0]}
    return Dataset.from_dict(merged)
