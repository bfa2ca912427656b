"""What the long steps of a run have found, on disk until the run has ended well.

A run that is started again takes the same steps in the same order, and nothing in between is left to chance. So a
result is known by its place: what it belongs to (a budget, for instance), the number of its step, and its part of that.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import PruningError
from .whole_files import written_whole

# A result that still grows is written so many seconds after it was written last, or after so many times as long as
# writing took, whichever is later.
PAUSE = 60.0
PAUSE_PER_WRITING = 20.0

Sizes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

logger = logging.getLogger(__name__)


class KeptSteps:
    """The steps of a run.

    Args:
        folder: where their results are kept; None keeps nothing.
        found: names of the files in it that an interrupted run has left, and that count: with several processes those
            that every one of them has.
    """

    def __init__(self, folder: Path | None = None, found: Collection[str] = ()) -> None:
        self._folder, self._found = folder, frozenset(found)
        self._label, self._number = "", 0

    def begin(self, label: str) -> None:
        """The steps that follow belong to `label`, and are counted from 1."""
        self._label, self._number = label, 0

    def step(self, name: str) -> KeptStep:
        """The next step."""
        self._number += 1
        return KeptStep(self._folder, f"{self._label}-{self._number:03d}-{name}-", self._found)

    def remove(self) -> None:
        """Removes what was kept: the run has ended well."""
        if self._folder is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # other processes' folders are still in there
            self._folder.parent.rmdir()


class KeptStep:
    """A step, whose result has one part or several.

    Args:
        folder: where it is kept; None keeps nothing.
        prefix: of its files' names.
        found: see `KeptSteps`.
    """

    def __init__(self, folder: Path | None, prefix: str, found: Collection[str]) -> None:
        self._folder, self._prefix, self._found = folder, prefix, found
        self._next = time.monotonic() + PAUSE

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self._folder is not None

    @property
    def is_due(self) -> bool:
        """Whether it is time to write a result that still grows."""
        return self.keeps and time.monotonic() >= self._next

    def read(
        self, part: str, sizes: Sizes, device: torch.device | str = "cpu"
    ) -> tuple[dict[str, torch.Tensor], str] | None:
        """What an interrupted run has left of a part, and the text beside it; None where it has left nothing.

        Args:
            part: its name.
            sizes: dtype and shape of every tensor in it; −1 stands for any number.
            device: where the tensors are to be.

        Raises:
            PruningError: the file holds something else.
        """
        path = self._path(part)
        if path is None or path.name not in self._found:
            return None
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                _check_sizes(file, sizes)
                # Copies: the file goes before they do.
                return {name: file.get_tensor(name).clone() for name in sizes}, (file.metadata() or {})["text"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise PruningError(
                f"{path} does not hold what a run leaves there: {error}. Remove {path.parent.parent} to start anew."
            ) from error

    def write(self, part: str, tensors: Mapping[str, torch.Tensor], text: str = "") -> None:
        """Keeps a part, in the place of what was kept of it before."""
        path = self._path(part)
        if path is None:
            return
        start = time.monotonic()
        try:
            with written_whole(path) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"text": text})
        except (OSError, SafetensorError) as error:
            logger.warning("%s could not be written (%s): an interrupted run will take this step again.", path, error)
        now = time.monotonic()
        self._next = now + max(PAUSE, PAUSE_PER_WRITING * (now - start))

    def _path(self, part: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{quote(self._prefix + part, safe='=')}.safetensors"


def _check_sizes(file: safe_open, sizes: Sizes) -> None:
    """Compares the header with what is expected, before anything is allocated."""
    names = set(file.keys())
    if names != set(sizes):
        raise ValueError(f"tensors named {', '.join(sorted(names ^ set(sizes)))} are missing, or more than there are")
    for name, (dtype, shape) in sizes.items():
        header = file.get_slice(name)
        found = tuple(header.get_shape())
        fits = len(found) == len(shape) and all(wanted in (-1, size) for size, wanted in zip(found, shape, strict=True))
        if not fits or header.get_dtype() != _CODES.get(dtype):
            raise ValueError(f"{name} is {header.get_dtype()} {list(found)}, not {dtype} {list(shape)}")


# What safetensors calls the types.
_CODES = {
    torch.bool: "BOOL",
    torch.int64: "I64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}
