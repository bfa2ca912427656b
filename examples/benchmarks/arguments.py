"""The options that every benchmark shares, and how its results are written."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import hf_prune


def benchmark_parser(docstring: str | None, *, needs_files: bool = True) -> argparse.ArgumentParser:
    """A parser with the shared options.

    Args:
        docstring: of the script; it is shown as it is by `--help`.
        needs_files: whether the script reads models and data.
    """
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    if needs_files:
        shared = os.environ.get("HF_PRUNE_SHARED")
        for name, content in (("models", "the fine-tuned models"), ("data", "the data sets")):
            default = Path(shared) / name if shared else None
            parser.add_argument(
                f"--{name}",
                type=Path,
                default=default,
                required=default is None,
                help=f"folder with {content}; default: {name}/ in the folder named by HF_PRUNE_SHARED",
            )
        parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="default: cpu")
    parser.add_argument("--output", type=Path, help="write the results there, as JSON")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU; default: as it chooses")
    return parser


def prepare_run(arguments: argparse.Namespace) -> None:
    """Sets the threads, and silences the progress bars of the libraries: each script shows its own."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on besides the code."""
    return {
        "hf_prune": hf_prune.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_results(path: Path | None, results: dict[str, Any]) -> None:
    """Writes the results with the environment, if a path was given."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), **results}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf8")
