"""Cells of a long table, each measured once and kept, so that the table can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from hf_prune.whole_files import written_whole


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
        collection: a file with a cell on every line, for those that were measured elsewhere; None for none.
    """

    def __init__(self, folder: Path, collection: Path | None = None) -> None:
        self.folder, self._collection = folder, collection
        self._collected = self._read_collection()

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """The file of a cell: a readable name and a digest of all its settings."""
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"

    def read(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured for a cell, or None if that has not happened yet."""
        path = self.path(name, settings)
        try:
            content = json.loads(path.read_text(encoding="utf8"))
        except FileNotFoundError:
            content = self._collected.get(path.name)
        return None if content is None else content["measured"]

    def write(self, name: str, settings: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Keeps what was measured; an interruption leaves no half-written file."""
        _write(self.path(name, settings), json.dumps({"settings": settings, "measured": measured}, indent=1))

    def collect(self, cells: Sequence[tuple[Measurable, Mapping[str, Any]]]) -> None:
        """Adds cells to those in the collection, if there is one."""
        if self._collection is None:
            return
        self._collected = self._read_collection()  # another run may have added to it meanwhile
        for cell, measured in cells:
            settings = cell.settings()
            content = {"name": cell.name, "settings": settings, "measured": measured}
            self._collected[self.path(cell.name, settings).name] = content
        lines = [json.dumps(self._collected[name]) + "\n" for name in sorted(self._collected)]
        _write(self._collection, "".join(lines))

    def _read_collection(self) -> dict[str, dict[str, Any]]:
        """The cells in the collection, by the names of their files."""
        if self._collection is None or not self._collection.exists():
            return {}
        cells = map(json.loads, self._collection.read_text(encoding="utf8").splitlines())
        return {self.path(cell["name"], cell["settings"]).name: cell for cell in cells}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf8")


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
    missing = [] if finished else [cell for cell in wanted.values() if cache.read(cell.name, cell.settings()) is None]
    for cell in (bar := tqdm(missing, desc="Cells", unit="cell", disable=not missing)):
        bar.set_postfix_str(cell.title)
        try:
            cache.write(cell.name, cell.settings(), measure(cell))
        except failure as error:
            tqdm.write(f"{cell.title} failed: {error}", file=sys.stderr)
    read = ((cell, cache.read(cell.name, cell.settings())) for cell in cells)
    found = [(cell, values) for cell, values in read if values is not None]
    cache.collect(found)
    return found
