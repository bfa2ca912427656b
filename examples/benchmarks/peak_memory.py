"""The highest memory use of a piece of code, beyond what was in use before it."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

# Has glibc give freed tensors back at once. By itself it keeps those of some sizes for later, so that the resident set
# is up to a fifth above what is alive, and differs by a few percent from run to run.
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Peak:
    """Filled in at the end of the `with` block of `peak_memory`.

    Attributes:
        bytes: highest use inside the block minus the use before it.
    """

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures a `with` block; use it in a process of its own.

    On the CPU that is the resident set. Its high-water mark counts from the start of the process; on Linux it is
    lowered to what is in use before the block. Where that is not possible, an earlier mark can hide what the block
    uses, so the block's use is then counted from that mark and may come out too small.
    """
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with suppress(OSError):
            _CLEAR.write_text("5", encoding="ascii")
        before = _high_water_mark()
        yield peak
        # The kernel counts resident pages per processor and adds them up roughly: little use can come out below none.
        peak.bytes = max(0, _high_water_mark() - before)


def measured_apart(script: str, argv: Sequence[str], what: str) -> int:
    """The number that a script prints last, given `--measure` beside its own options, in a new process."""
    command = [sys.executable, script, *argv, "--measure", what]
    surroundings = os.environ | _ALLOCATION
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=surroundings)
    return int(run.stdout.split()[-1])


def _high_water_mark() -> int:
    """The most bytes of this process that were resident at once."""
    if _STATUS.exists():
        # The same number from getrusage may include the process that started this one.
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
