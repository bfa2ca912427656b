"""A cache of finished cells, so that a long table can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def default_cache(benchmark: str) -> Path:
    """Where a benchmark keeps its cells: below HF_PRUNE_CACHE, or below ~/.cache/hf_prune."""
    root = os.environ.get("HF_PRUNE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "hf_prune") / "benchmarks" / benchmark


class CellCache:
    """One JSON file per cell, found by everything that was asked for.

    Changes of the library's code do not make a cell outdated: give a new tag where they matter.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """The file of a cell: a readable name and a digest of all its settings."""
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    def read(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured for a cell, or None if that has not happened yet."""
        try:
            content = json.loads(self.path(name, settings).read_text(encoding="utf8"))
        except FileNotFoundError:
            return None
        return content["measured"]

    def write(self, name: str, settings: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Keeps what was measured; an interruption leaves no half-written file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".tmp", delete=False, encoding="utf8") as file:
            json.dump({"settings": settings, "measured": measured}, file, indent=1)
        os.replace(file.name, self.path(name, settings))
