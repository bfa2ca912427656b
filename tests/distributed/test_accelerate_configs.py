"""The example configurations are valid, and the one for the CPU starts as many processes as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from tests.distributed.launching import CONFIGS, launch

KINDS = {
    "cpu_two_processes": DistributedType.MULTI_GPU,
    "one_node_gpus": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
}
# Each process writes a file: what two of them print may come out mixed.
REPORT = """
import sys
from pathlib import Path
from accelerate import PartialState

state = PartialState(cpu=True)
(Path(sys.argv[1]) / f"{state.process_index}.txt").write_text(f"one of {state.num_processes}")
state.destroy_process_group()
"""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_launcher_knows_every_setting(path: Path) -> None:
    """Accelerate refuses unknown settings, but not those of FSDP, which it hands on by name."""
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[path.stem]
    assert config.num_processes >= 2
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(known)
    assert bool(config.fsdp_config) == (path.stem == "fsdp2")


def test_two_processes_are_started_on_the_cpu(tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    finished = launch(script, 2, tmp_path)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "0.txt": "one of 2",
        "1.txt": "one of 2",
    }
