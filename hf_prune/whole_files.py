"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
