"""What the scripts of studies of trainings share: their options, measuring, and what they write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from arguments import benchmark_parser
from cell_arguments import Fields, add_cache_arguments, add_choice_arguments, add_seed_argument, parse_filters
from cells import CellCache, Measurable, measure_cells
from study_cells import Request
from study_runs import RunFailed

Cell = TypeVar("Cell", bound=Measurable)
Settings = TypeVar("Settings")


def study_parser(docstring: str | None, name: str, seeds: int, *, only: str, settings: str) -> argparse.ArgumentParser:
    """A parser with the options of every study.

    Args:
        docstring: of the script.
        name: of the study, for the cache.
        seeds: trainings of a cell, by default.
        only, settings: see `add_choice_arguments`.
    """
    parser = benchmark_parser(docstring)
    add_cache_arguments(parser, name)
    add_seed_argument(parser, seeds, "trainings of every cell")
    add_choice_arguments(parser, only, settings)
    parser.add_argument("--plots", type=Path, help="folder for the pictures; default: that of --output")
    return parser


def parse_study(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    defaults: Settings,
    known: Fields,
    cells_of: Callable[[Request[Settings], int, Mapping[str, set[str]]], Iterable[Cell]],
) -> tuple[argparse.Namespace, Request[Settings], list[Cell]]:
    """The options, what all cells have in common, and the cells that are asked for.

    Args:
        parser: of the options.
        argv: the options; None for those of the process.
        defaults: of the trainings' settings.
        known: see `parse_filters`.
        cells_of: the cells of a request, with so many seeds, that pass the filters.
    """
    arguments = parser.parse_args(argv)
    try:
        request = Request.of(arguments, defaults)
        cells = list(cells_of(request, arguments.seeds, parse_filters(arguments.only, known)))
        if not cells:
            raise ValueError(f"--only {' '.join(arguments.only)}: the study has no such cells")
    except ValueError as error:
        parser.error(str(error))
    return arguments, request, cells


def measure_study(
    cells: Sequence[Cell], arguments: argparse.Namespace, measure: Callable[[Cell], Mapping[str, Any]]
) -> list[tuple[Cell, dict[str, Any]]]:
    """What `measure_cells` returns; a training that fails ends its cell only. Without anything the script ends."""
    measured = measure_cells(cells, CellCache(arguments.cache), measure, failure=RunFailed, finished=arguments.finished)
    if not measured:
        raise SystemExit("Nothing to show: every training has failed, or (with --finished) nothing was measured yet.")
    return measured


def raw_cells(measured: Iterable[tuple[Measurable, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Cells with their settings and numbers, for JSON."""
    return [{"cell": cell.name, **cell.settings(), "measured": values} for cell, values in measured]


def plots_folder(arguments: argparse.Namespace) -> Path | None:
    """Where pictures go; None where there are to be none."""
    folder = arguments.plots or (arguments.output.parent if arguments.output else None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder
