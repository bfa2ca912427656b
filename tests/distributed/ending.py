"""How a script of this folder ends."""

from __future__ import annotations

from accelerate import PartialState


def end_processes() -> None:
    """Ends the process group, if there is one: gloo's threads may abort a process that exits with it."""
    PartialState().destroy_process_group()
