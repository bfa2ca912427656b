"""Runs a script on one process, or on several by `accelerate launch`, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CONFIGS = ROOT / "examples" / "accelerate_configs"
SECONDS = 600  # on a busy machine


def launch(script: str | Path, processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What the script, of this folder or with its whole path, has printed, and how it ended.

    More processes than one are started with the example configuration for the CPU, which takes a free port, so that
    runs side by side do not meet.
    """
    command = [sys.executable]
    if processes > 1:
        config = CONFIGS / "cpu_two_processes.yaml"
        command += ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += ["--num_processes", str(processes)]
    command += [str(FOLDER / script), *map(str, arguments)]
    surroundings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=os.environ | surroundings, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            printed, errors = running.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            running.terminate()  # the launcher ends the processes that it has started, unlike when it is killed
            raise
    return subprocess.CompletedProcess(command, running.returncode, printed, errors)
