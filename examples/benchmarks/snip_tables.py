"""The tables of the study of SNIP, and what they say about the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from intervals import binomial_half_width
from markdown_tables import markdown_table, verdict
from snip_cells import DENSE, FFNS, HEADS, JOINT, KINDS, NORMALISED
from snip_results import MeasuredCurve, Predictions, StudyResults
from snip_rows import TITLES
from study_tables import Difference

ALLOWED_LOSS = 1.0
# Table 2 of the paper: the share of the parameters that is left → points that BERT-base loses, with normalisation.
PAPER_LOSS = {"sst2": {0.5: 0.9, 0.25: 4.3}, "mrpc": {0.5: 2.8, 0.25: 9.7}}
_QUANTILES = (0.05, 0.5, 0.95)
_UNITS = {"heads": "heads", "feed_forward": "FFNs"}
_SIMPLEST_HEADERS = (
    "task",
    "training",
    "at most 1 point below",
    "iterations",
    "parameters removed",
    "FLOPs removed",
    "metric",
    "difference of accuracies",
)
_MAXIMA_HEADERS = ("task", "training", "mappings", *(f"{quantile:.0%}" for quantile in _QUANTILES))


def markdown_report(results: StudyResults, split: str) -> str:
    """All tables."""
    parts = []
    for task in results.tasks:
        parts += [f"## {TITLES[task]}", _caption(results, task, split)]
        for curve in results.curves(task):
            parts += [f"### {curve.title}", _levels_table(curve, results.dense(task, curve.cell.seed))]
    tables = (
        (f"The simplest models that lose at most {ALLOWED_LOSS:.0f} point", _SIMPLEST_HEADERS, _simplest(results)),
        ("The largest absolute outputs before anything is removed", _MAXIMA_HEADERS, _maxima(results)),
        ("The paper's claims", ("claim", "measured", "holds"), _claims(results)),
    )
    for title, headers, rows in tables:
        found = list(rows)
        if found:
            parts += [f"## {title}", markdown_table(headers, found)]
    return "\n\n".join(parts)


def _caption(results: StudyResults, task: str, split: str) -> str:
    dense = {seed: results.dense(task, seed) for seed in results.seeds(task)}
    models = [model for model in dense.values() if model is not None]
    models += [curve.models[0] for curve in results.curves(task)]
    count, rows = len(models[0].labels), "dev" if split == "dev" else "held-out train"
    width = 100 * binomial_half_width(models[0].metrics["accuracy"] / 100, count)
    scores = [
        f" Full fine-tuning{f' (seed {seed})' if seed else ''}, where the curves start:"
        f" {', '.join(f'{name} {value:.2f}' for name, value in _shown(task, model).items())}."
        for seed, model in dense.items()
        if model is not None
    ]
    return (
        f"{count:,} {rows} rows (accuracy ± {width:.2f} for the choice of the rows). Parameters and FLOPs are those of"
        " attention and FFNs that are left. Differences of accuracies to full fine-tuning have the 95 % interval of a"
        f" paired comparison.{''.join(scores)}"
    )


def _shown(task: str, model: Predictions) -> dict[str, float]:
    """The metrics to be shown: F1 where the paper reports it."""
    return {name: value for name, value in model.metrics.items() if name == "accuracy" or task == "mrpc"}


def _levels_table(curve: MeasuredCurve, dense: Predictions | None) -> str:
    """One row per level."""
    rows: list[list[object]] = []
    for level, model in zip(curve.curve.levels, curve.models, strict=True):
        scores = [f"{value:.2f}" for value in _shown(curve.cell.task, model).values()]
        difference = "" if dense is None else Difference.of(model.right, dense.right)
        shares = [f"{level.params:.1%}", f"{level.flops:.1%}"]
        rows.append([level.details["iterations"], *shares, *curve.units(level), *scores, difference])
    names = list(_shown(curve.cell.task, curve.models[0]))
    return markdown_table(["iterations", "parameters", "FLOPs", "heads", "FFNs", *names, "difference"], rows)


def _simplest(results: StudyResults) -> Iterator[list[object]]:
    """As in the last rows of the paper's Table 2, and as `max_metric_drop` chooses."""
    for task in results.tasks:
        for curve in results.curves(task):
            references = {"its own first level": curve.models[0]}
            dense = results.dense(task, curve.cell.seed)
            if dense is not None:
                references = {KINDS[DENSE].title: dense, **references}
            for name, reference in references.items():
                yield [TITLES[task], curve.title, name, *_simplest_cells(curve, reference)]


def _simplest_cells(curve: MeasuredCurve, reference: Predictions) -> list[object]:
    index = curve.simplest(reference, ALLOWED_LOSS)
    if index is None:
        return ["none", "", "", "", ""]
    level, model = curve.curve[index], curve.models[index]
    removed = [f"{1 - level.params:.1%}", f"{1 - level.flops:.1%}"]
    metric = f"{curve.metric} {level.metrics[curve.metric]:.2f}"
    return [level.details["iterations"], *removed, metric, Difference.of(model.right, reference.right)]


def _maxima(results: StudyResults) -> Iterator[list[object]]:
    """Over all mappings of a kind and all rows."""
    for task in results.tasks:
        for curve in results.curves(task):
            for kind, name in _UNITS.items():
                values = [item.values.numpy().ravel() for item in curve.maxima if item.kind == kind]
                if values:
                    quantiles = np.quantile(np.concatenate(values), _QUANTILES)
                    yield [TITLES[task], curve.title, name, *(f"{value:.2f}" for value in quantiles)]


def _claims(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    for task in results.tasks:
        for seed in results.seeds(task):
            suffix = f", seed {seed}" if seed else ""
            for claim, measured, holds in _claims_of(results, task, seed):
                yield f"{TITLES[task]}{suffix}: {claim}", measured, verdict(holds)


def _claims_of(results: StudyResults, task: str, seed: int) -> Iterator[tuple[str, str, bool]]:
    normalised, without = (results.curve(task, kind, seed) for kind in (NORMALISED, JOINT))
    dense = results.dense(task, seed)
    if dense is not None and normalised is not None:
        yield from _losses(normalised, dense)
        if without is not None:
            yield _normalisation_helps(normalised, without, dense)
    heads, ffns = (results.curve(task, kind, seed) for kind in (HEADS, FFNS))
    if heads is not None and ffns is not None:
        found = Difference.of(heads.models[-1].right, ffns.models[-1].right)
        kept = f"{heads.curve[-1].params:.1%} of the parameters left, and {ffns.curve[-1].params:.1%}"
        yield "removing heads costs less than removing FFNs, at the end of both", f"{found} ({kept})", found.points > 0


def _losses(curve: MeasuredCurve, dense: Predictions) -> Iterator[tuple[str, str, bool]]:
    """No more than the paper's model loses at the same size."""
    for params, paper in PAPER_LOSS[curve.cell.task].items():
        index = curve.reaching(params)
        if index is not None:
            loss = dense.metrics[curve.metric] - curve.models[index].metrics[curve.metric]
            claim = f"{1 - params:.0%} of the parameters cost at most {paper} points of {curve.metric}"
            yield claim, f"{loss:.2f} ({1 - curve.curve[index].params:.1%} removed)", loss <= paper


def _normalisation_helps(
    normalised: MeasuredCurve, without: MeasuredCurve, dense: Predictions
) -> tuple[str, str, bool]:
    """More can be removed within a point of full fine-tuning."""
    removed = []
    for curve in (normalised, without):
        index = curve.simplest(dense, ALLOWED_LOSS)
        removed.append(0.0 if index is None else 1 - curve.curve[index].params)
    claim = f"spectral normalisation lets more go within {ALLOWED_LOSS:.0f} point"
    return claim, f"{removed[0]:.1%} with, {removed[1]:.1%} without", removed[0] > removed[1]
