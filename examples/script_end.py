"""How the scripts end when several processes run them."""

from __future__ import annotations

from accelerate import Accelerator


def end_processes(accelerator: Accelerator) -> None:
    """Ends the process group, because a process that exits with its group can abort.

    All wait for each other first: a thread of gloo's may still be releasing tensors that it has exchanged, for which it
    needs Python's lock, while the group that ends waits for the thread and has the lock.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
