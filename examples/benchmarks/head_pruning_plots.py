"""The pictures of the study of head pruning (Zhang et al. 2020, Figures 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from head_pruning_cells import KINDS, NONE, PRUNED, RANDOM, SINGLE_SHOT, SWEEP
from head_pruning_tables import StudyResults
from head_pruning_tasks import TASKS
from tasks import MAXIMUM_TOKENS, Row
from transformers import AutoModel, AutoTokenizer

from hf_prune import MetaPruner
from hf_prune.report import plot_attention_maps
from hf_prune.report.figures import INK, add_legend, colours_of, finish, label_lines, new_figure
from hf_prune.strategies.single_shot import attention_maps

_SHOWN = 4
_COLOURS = colours_of(PRUNED)

# Share of the heads, number, and half-width of its interval where it is a mean over draws.
Point = tuple[float, float, float]


def plot_shares(results: StudyResults, path: Path) -> None:
    """Accuracy on QNLI and correlation on STS-B by the share of the heads that is kept, a line per kind.

    Args:
        results: of the study.
        path: of the picture.
    """
    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, 2)
    dense = results.get("qnli", NONE, 1.0), results.similarity(NONE, 1.0)
    levels = (dense[0] and dense[0].accuracy, dense[1] and dense[1].pearson.mean)
    names = (f"{TASKS['qnli'].title}, fine-tuned: accuracy", "STS-B, not fine-tuned: Pearson × 100")
    for axes, lines, level, name in zip(
        panels, (_accuracies(results), _correlations(results)), levels, names, strict=True
    ):
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=":", label="all heads")
        for kind, points in lines:
            shares, values, widths = zip(*points, strict=True)
            marks = {"marker": "o", "markersize": 4, "capsize": 3, "color": _COLOURS[kind], "label": KINDS[kind]}
            axes.errorbar([100 * share for share in shares], values, yerr=widths, **marks)
        axes.set_title(name, fontsize=9, color=INK)
        label_lines(axes, "heads kept, in %", "")
        add_legend(axes)
    finish(figure, "What is left with fewer heads", path)


def _accuracies(results: StudyResults) -> Iterator[tuple[str, list[Point]]]:
    for kind in PRUNED:
        entries = [entry for heads in SWEEP if (entry := results.get("qnli", kind, heads)) is not None]
        if entries:
            yield kind, [(entry.kept, entry.accuracy, 0.0) for entry in entries]


def _correlations(results: StudyResults) -> Iterator[tuple[str, list[Point]]]:
    for kind in (SINGLE_SHOT, RANDOM):
        entries = [entry for heads in SWEEP if (entry := results.similarity(kind, heads)) is not None]
        if entries:
            yield kind, [(entry.kept, entry.pearson.mean, entry.pearson.half_width or 0.0) for entry in entries]


def plot_attention(pruner_folder: Path, base: Path, row: Row, path: Path) -> None:
    """The attention maps of one pair of texts that the pruner scores highest and lowest, over all layers.

    Args:
        pruner_folder: of the meta-pruner.
        base: folder of the model that looks at the texts.
        row: with the columns "sentence1" and "sentence2".
        path: of the picture.
    """
    pruner = MetaPruner.from_pretrained(pruner_folder).eval()
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModel.from_pretrained(base, dtype=torch.float32)
    texts = row["sentence1"], row["sentence2"]
    batch = tokenizer(*texts, truncation=True, max_length=MAXIMUM_TOKENS, return_tensors="pt")
    found = attention_maps(model, batch, pruner.config.map_size)
    maps = torch.cat([of_layer[0] for of_layer in found.values()])
    names = [
        f"layer {layer}, head {head}" for layer, each in enumerate(found.values()) for head in range(each.shape[1])
    ]
    scores = pruner.scores(maps, "pair").detach()
    order = scores.argsort(descending=True).tolist()
    shown = [*order[:_SHOWN], *order[-_SHOWN:]]
    plot_attention_maps(
        maps[shown],
        scores[shown],
        [names[index] for index in shown],
        path,
        title="Attention to one QNLI example: highest and lowest scores",
        columns=_SHOWN,
    )
