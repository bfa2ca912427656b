"""What the scripts of studies of trainings share: their options, the order of their steps, and what they write."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from arguments import benchmark_parser, prepare_run, write_results
from cell_arguments import (
    Fields,
    add_cache_arguments,
    add_choice_arguments,
    add_collection_argument,
    add_seed_argument,
    cell_cache,
    parse_filters,
)
from cells import Measurable, measure_cells
from study_cells import Request
from study_runs import RunFailed, Runner

Cell = TypeVar("Cell", bound=Measurable)
Settings = TypeVar("Settings")
StudyRunner = TypeVar("StudyRunner", bound=Runner)
Results = TypeVar("Results")


@dataclass(frozen=True)
class Drawing(Generic[Settings, StudyRunner]):
    """What a study's pictures may be made from beside its results.

    Attributes:
        folder: where they go.
        arguments: the script's options.
        settings: of the trainings.
        runner: knows the trained models' folders.
    """

    folder: Path
    arguments: argparse.Namespace
    settings: Settings
    runner: StudyRunner


@dataclass(frozen=True)
class Study(Generic[Cell, Settings, StudyRunner, Results]):
    """A study: cells that are measured after trainings, tables and pictures.

    Attributes:
        docstring: of the script, for its help.
        name: for the cache.
        seeds: trainings of a cell, by default.
        only: an example of `--only`, see `add_choice_arguments`.
        explained: what `--set` sets, and an example.
        settings: of the trainings, by default.
        fields: what `--only` can name, see `parse_filters`.
        cells_of: the cells of a request, with so many seeds, that pass the filters.
        make_runner: knows the models and rows that the trainings read.
        measure: trains what is missing for a cell, and measures it.
        results_of: the results of all measured cells.
        markdown: the results as tables, with the name of the split.
        entries: the results as JSON, by what they are of.
        draw: draws the results.
    """

    docstring: str | None
    name: str
    seeds: int
    only: str
    explained: str
    settings: Settings
    fields: Fields
    cells_of: Callable[[Request[Settings], int, Mapping[str, set[str]]], Iterable[Cell]]
    make_runner: Callable[[Settings, argparse.Namespace], StudyRunner]
    measure: Callable[[Cell, StudyRunner, argparse.Namespace], Mapping[str, Any]]
    results_of: Callable[[list[tuple[Cell, dict[str, Any]]]], Results]
    markdown: Callable[[Results, str], str]
    entries: Callable[[Results], Mapping[str, Any]]
    draw: Callable[[Results, Drawing[Settings, StudyRunner]], None]

    def run(self, argv: Sequence[str] | None = None) -> None:
        """Measures what is missing, prints the tables and draws the pictures."""
        arguments, request, cells = self.parse(argv)
        prepare_run(arguments)
        runner = self.make_runner(request.settings, arguments)
        measured = measure_study(cells, arguments, lambda cell: self.measure(cell, runner, arguments))
        results = self.results_of(measured)
        print(self.markdown(results, request.split))
        write_results(arguments.output, {**self.entries(results), "cells": raw_cells(measured)})
        folder = plots_folder(arguments)
        if folder is not None:
            self.draw(results, Drawing(folder, arguments, request.settings, runner))

    def parse(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Request[Settings], list[Cell]]:
        """The options, what all cells have in common, and the cells that are asked for."""
        parser = benchmark_parser(self.docstring)
        add_cache_arguments(parser, self.name)
        add_collection_argument(parser)
        add_seed_argument(parser, self.seeds, "trainings of every cell")
        add_choice_arguments(parser, self.only, self.explained)
        parser.add_argument("--plots", type=Path, help="folder for the pictures; default: that of --output")
        arguments = parser.parse_args(argv)
        try:
            request = Request.of(arguments, self.settings)
            cells = list(self.cells_of(request, arguments.seeds, parse_filters(arguments.only, self.fields)))
            if not cells:
                raise ValueError(f"--only {' '.join(arguments.only)}: the study has no such cells")
        except ValueError as error:
            parser.error(str(error))
        return arguments, request, cells


def measure_study(
    cells: Sequence[Cell], arguments: argparse.Namespace, measure: Callable[[Cell], Mapping[str, Any]]
) -> list[tuple[Cell, dict[str, Any]]]:
    """What `measure_cells` returns; a training that fails ends its cell only. Without anything the script ends."""
    measured = measure_cells(cells, cell_cache(arguments), measure, failure=RunFailed, finished=arguments.finished)
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
