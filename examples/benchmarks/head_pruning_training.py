"""`text_classification.py` with the same options, which also notes the peak of its memory: a step of `head_pruning.py`.

What the process holds before it reads the model is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import text_classification
import torch
from head_pruning_cells import PEAK_FILE
from peak_memory import peak_memory


def main(argv: Sequence[str]) -> None:
    """Trains, then writes the peak beside the model."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--use_cpu", action="store_true")
    arguments, _ = parser.parse_known_args(argv)
    on_cpu = arguments.use_cpu or not torch.cuda.is_available()
    with peak_memory(torch.device("cpu" if on_cpu else "cuda")) as peak:
        text_classification.main(argv)
    (arguments.output_dir / PEAK_FILE).write_text(json.dumps({"bytes": peak.bytes}), encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1:])
