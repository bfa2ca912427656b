"""Files that are there whole or not at all, and folders that hold what was written last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary file beside `target`, which takes its place once the block has ended well, and goes otherwise."""
    temporary = target.with_name(f".{target.name}-{uuid4().hex}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file in its place that only the owner may read
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def move_into(source: Path, target: Path, is_stale: Callable[[str], bool]) -> None:
    """Moves what is in one folder into another, and removes files that an earlier writer left there.

    Folders (a tokenizer's chat templates) take the place of those of the same name.

    Args:
        source: on the same file system.
        target: is there already.
        is_stale: of which names files go that `source` did not have.
    """
    names = {path.name for path in source.iterdir()}
    for name in names:
        if (target / name).is_dir() and not (target / name).is_symlink():
            shutil.rmtree(target / name)
        os.replace(source / name, target / name)
    for path in target.iterdir():
        if path.name not in names and is_stale(path.name):
            path.unlink(missing_ok=True)  # another process may do the same
