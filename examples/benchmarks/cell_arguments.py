"""The options of benchmarks that measure many cells and keep them: which cells, and with which settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from cells import CellCache, default_cache

Settings = TypeVar("Settings")
CellT = TypeVar("CellT", bound=Any)
Fields = Mapping[str, Collection[Any] | None]


def add_cache_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """`--cache` and `--tag`: where cells are kept, and what tells them apart besides their settings."""
    parser.add_argument("--cache", type=Path, default=default_cache(benchmark), help="default: %(default)s")
    parser.add_argument("--tag", default="", help="part of every cell's key: the state of the code that is measured")


def add_collection_argument(parser: argparse.ArgumentParser) -> None:
    """`--cells`: a file for cells that have been measured on other machines."""
    parser.add_argument(
        "--cells", type=Path, help="file (JSON Lines) with cells that need not be measured; those shown are added to it"
    )


def cell_cache(arguments: argparse.Namespace) -> CellCache:
    """Where the options say that cells are kept."""
    return CellCache(arguments.cache, arguments.cells)


def add_seed_argument(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """`--seeds`: how many of `what` are averaged."""
    parser.add_argument("--seeds", type=int, default=default, help=f"{what}; default: %(default)s")


def add_choice_arguments(parser: argparse.ArgumentParser, only: str, settings: str) -> None:
    """`--only`, `--set`, `--held-out`, `--finished`, `--max-eval`.

    Args:
        parser: gets the options.
        only: an example of filters.
        settings: what settings there are, and an example.
    """
    parser.add_argument("--only", nargs="+", default=[], metavar="FIELD=VALUES", help=f"cells to measure: {only}")
    parser.add_argument("--set", nargs="+", default=[], metavar="SETTING=VALUE", help=settings)
    parser.add_argument("--held-out", action="store_true", help="evaluate on held-out train rows instead of dev")
    parser.add_argument("--finished", action="store_true", help="measure nothing, show the cells that are finished")
    parser.add_argument("--max-eval", type=int, help="evaluation rows, to try the script")


def split_of(arguments: argparse.Namespace) -> str:
    """The rows to evaluate on, see `tasks.TaskRows`."""
    return "held_out" if arguments.held_out else "dev"


def parse_filters(filters: Collection[str], known: Fields) -> dict[str, set[str]]:
    """Filters such as "sparsity=0.5,0.9" as allowed values by field.

    Args:
        filters: what `--only` was given.
        known: the values of each field of a cell; None where any will do.

    Raises:
        ValueError: a field or value that no cell has.
    """
    allowed: dict[str, set[str]] = {}
    for text in filters:
        name, _, values = text.partition("=")
        if name not in known:
            raise ValueError(f"--only {text}: no field {name!r}; cells have {', '.join(known)}")
        allowed[name] = set(values.split(","))
        usual = known[name]
        if usual is not None and not allowed[name] <= (names := set(map(str, usual))):
            raise ValueError(f"--only {text}: {name} is one of {', '.join(sorted(names))}")
    return allowed


def chosen_cells(parser: argparse.ArgumentParser, choose: Callable[[], Iterable[CellT]]) -> list[CellT]:
    """The cells that the options ask for; where one cannot be, the script ends with the parser's own message.

    Args:
        parser: of the options.
        choose: makes the cells, or raises a ValueError or TypeError.
    """
    try:
        cells = list(choose())
        for cell in cells:
            cell.settings()  # refuses what the configuration does not have or take
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    return cells


def passes(cell: object, allowed: Mapping[str, Collection[str]]) -> bool:
    """Whether all filters let a cell through."""
    return all(str(getattr(cell, name)) in values for name, values in allowed.items())


def parse_settings(texts: Collection[str], defaults: Settings) -> Settings:
    """A dataclass of numbers and texts with what "rows=100" and the like change.

    Raises:
        ValueError: a setting that does not exist, or a value that is no number of its type.
    """
    known = asdict(defaults)
    changed: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"--set {text}: no setting {name!r}; there are {', '.join(known)}")
        changed[name] = _flag(value) if isinstance(known[name], bool) else type(known[name])(value)
    return replace(defaults, **changed)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} must be true or false")
    return text == "true"
