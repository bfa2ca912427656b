"""Cells of a long table, each measured once and kept, so that the table can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm


class Measurable(Protocol):
    """What is measured once."""

    @property
    def name(self) -> str:
        """For its file in the cache."""

    @property
    def title(self) -> str:
        """For the progress bar and for messages."""

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""


Cell = TypeVar("Cell", bound=Measurable)


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


def measure_cells(
    cells: Sequence[Cell],
    cache: CellCache,
    measure: Callable[[Cell], Mapping[str, Any]],
    failure: type[Exception],
    *,
    finished: bool,
) -> list[tuple[Cell, dict[str, Any]]]:
    """What was measured for each cell, now or earlier; a failure is reported and its cell left out.

    Args:
        cells: cells with the same settings are measured once.
        cache: where they are kept.
        measure: measures one.
        failure: an error that ends a cell and not the run.
        finished: nothing is measured now.
    """
    wanted: dict[Path, Cell] = {}
    for cell in cells:
        wanted.setdefault(cache.path(cell.name, cell.settings()), cell)
    missing = [] if finished else [cell for path, cell in wanted.items() if not path.is_file()]
    for cell in (bar := tqdm(missing, desc="Cells", unit="cell", disable=not missing)):
        bar.set_postfix_str(cell.title)
        try:
            cache.write(cell.name, cell.settings(), measure(cell))
        except failure as error:
            tqdm.write(f"{cell.title} failed: {error}", file=sys.stderr)
    found = ((cell, cache.read(cell.name, cell.settings())) for cell in cells)
    return [(cell, values) for cell, values in found if values is not None]
