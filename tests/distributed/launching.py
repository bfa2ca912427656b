"""Runs a script of this folder on one process or on several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def launch(script: str, processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What the script has printed, and how it ended."""
    command = [sys.executable]
    if processes > 1:
        # A rendezvous of its own, so that runs side by side do not meet.
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    surroundings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(FOLDER.parents[1])}
    return subprocess.run(
        [*command, str(FOLDER / script), *map(str, arguments)],
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
