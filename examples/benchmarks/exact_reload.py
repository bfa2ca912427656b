"""Exactness of checkpoints: a saved pruned model gives the very same outputs in another process.

The other process is this file, run as a script.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from exact_cuts import random_plan
from random_models import Case, every_case, random_batch, random_model
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from hf_prune import describe_model
from hf_prune.surgery import outputs, shrink_model, write_metadata

_TENSORS = "expected.safetensors"


def check_reloading(cases: Sequence[Case]) -> dict[str, float]:
    """Saves every case's pruned model, loads all in one other process, and compares.

    Returns:
        By label the largest difference of any output value; 0 means identical in every bit.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in tqdm(cases, desc="Save", unit="model", leave=False, disable=None):
            _save(case, folder / label(case))
        command = [sys.executable, __file__, str(folder), str(torch.get_num_threads())]
        finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def label(case: Case) -> str:
    """A name that is unique among the cases and fit for a folder."""
    return f"{case.model_type} {case.name}"


def _save(case: Case, folder: Path) -> None:
    model = random_model(case)
    anatomy, batch = describe_model(model), random_batch(case, model)
    plan = random_plan(anatomy)
    shrink_model(model, anatomy, plan)
    write_metadata(model, anatomy, plan, strategy={}, cost={}, metrics={})
    model.save_pretrained(folder)
    with torch.no_grad():
        found = {f"output {index}": value.contiguous() for index, value in enumerate(outputs(model, batch))}
    save_file(found, folder / _TENSORS)


def _compare(case: Case, folder: Path) -> float:
    model = case.auto_class.from_pretrained(folder).eval()
    for parameter in model.parameters():
        # In a file that is mapped into memory a tensor may start anywhere, and some of the processor's kernels add up
        # in another order then, for dense models as well. A copy is placed like the tensors that were saved.
        parameter.data = parameter.data.clone()
    expected: Mapping[str, torch.Tensor] = load_file(folder / _TENSORS)
    with torch.no_grad():
        found = outputs(model, random_batch(case, model))
    differences = [
        0.0 if torch.equal(value, expected[f"output {index}"]) else _distance(value, expected[f"output {index}"])
        for index, value in enumerate(found)
    ]
    return max(differences)


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Infinite where the shapes differ or a value is not a number."""
    if first.shape != second.shape:
        return float("inf")
    difference = (first.double() - second.double()).abs().max().item()
    return difference if difference > 0 else float("inf")


def _main(folder: Path, threads: int) -> None:
    """What the other process does: loads every model in the folder and prints the differences."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    saved = [case for case in every_case() if (folder / label(case)).exists()]
    print(json.dumps({label(case): _compare(case, folder / label(case)) for case in saved}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
