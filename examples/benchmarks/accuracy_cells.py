"""Which cells the accuracy table has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cell_arguments import passes
from tasks import TASKS

from hf_prune import FisherPruningConfig

FLOPS = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
RECOVERIES = ("none", "mask_tuning", "weights")
EXAMPLES = 2048
# The pipeline as it is by default, beside which the ablations stand.
FULL = "full"
ABLATION_FLOPS = (0.6, 0.4)
# Where scores differ most.
SMALL_FLOPS = (0.5, 0.4, 0.3, 0.2)
# Settings that came after the first cells were measured, as they were until then: they are no part of a cell's key.
_SINCE = {"blend": None, "labels": "data", "max_metric_drop": None, "metric": None}


@dataclass(frozen=True)
class Ablation:
    """One deviation from the default pipeline.

    Attributes:
        title: what it is, for the table.
        settings: of the configuration.
        examples: calibration examples.
        searched: whether the budget is divided between heads and filters by the search; otherwise the same fraction
            of both is kept, those with the highest scores over all layers.
        flops: the budgets that it is measured at.
        recoveries: the repairs that it is measured with.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: int = EXAMPLES
    searched: bool = True
    flops: tuple[float, ...] = ABLATION_FLOPS
    recoveries: tuple[str, ...] = RECOVERIES


ABLATIONS = {
    FULL: Ablation(f"default settings, {EXAMPLES:,} examples", flops=FLOPS),
    "no_search": Ablation("without search", searched=False),
    # Whether units are rearranged by default depends on the recovery, so one of these two is always the default.
    "rearrangement": Ablation("with rearrangement", {"rearrange": True}),
    "no_rearrangement": Ablation("without rearrangement", {"rearrange": False}),
    "uniform": Ablation("every layer alike", {"uniform": True}),
    "gradient": Ablation("importance: first-order gradient", {"importance": "gradient"}),
    "magnitude": Ablation("importance: weight magnitude", {"importance": "magnitude"}),
    "model_labels": Ablation("the model's own labels", {"labels": "model"}, flops=SMALL_FLOPS, recoveries=("weights",)),
    "blended": Ablation(
        "importance: predictive and representational, blended by trial; the model's own labels",
        {"importance": "blended", "labels": "model"},
        flops=SMALL_FLOPS,
        recoveries=("weights",),
    ),
    "after_refit": Ablation(
        "importance: what is lost after the refit",
        {"importance": "after_refit"},
        flops=SMALL_FLOPS,
        recoveries=("weights",),
    ),
    "after_refit_model_labels": Ablation(
        "importance: what is lost after the refit, with the model's own labels",
        {"importance": "after_refit", "labels": "model"},
        flops=SMALL_FLOPS,
        recoveries=("weights",),
    ),
    "512_examples": Ablation("512 examples", examples=512),
    "4096_examples": Ablation("4,096 examples", examples=4096),
}
# What `--only` can name.
FIELDS: dict[str, Collection[Any] | None] = {
    "task": TASKS,
    "flops": FLOPS,
    "recovery": RECOVERIES,
    "ablation": ABLATIONS,
    "seed": None,
}


@dataclass(frozen=True)
class Request:
    """What all cells of a run have in common.

    Attributes:
        split: "dev" or "held_out", see `tasks.TaskRows`.
        max_eval: evaluation rows; None for all.
        max_calibration: an upper limit on calibration examples; None for none.
        settings: fields of the configuration that differ from its defaults.
        tag: a name for the state of the code that is measured.
    """

    split: str
    max_eval: int | None
    max_calibration: int | None
    settings: Mapping[str, Any]
    tag: str


@dataclass(frozen=True)
class Cell:
    """One pruned model to be measured."""

    task: str
    flops: float
    recovery: str
    ablation: str
    seed: int
    request: Request

    @property
    def examples(self) -> int:
        """Calibration examples."""
        wanted, limit = ABLATIONS[self.ablation].examples, self.request.max_calibration
        return wanted if limit is None else min(wanted, limit)

    @property
    def searched(self) -> bool:
        """See `Ablation`."""
        return ABLATIONS[self.ablation].searched

    @property
    def config(self) -> FisherPruningConfig:
        """The configuration that is measured."""
        settings = {**self.request.settings, **ABLATIONS[self.ablation].settings}
        return FisherPruningConfig(flops=self.flops, recovery=self.recovery, **settings)

    @property
    def sample(self) -> tuple[str, int, int]:
        """Cells with the same value share their calibration sample and its gradients."""
        return self.task, self.seed, self.examples

    @property
    def name(self) -> str:
        """A readable name for the cache; an ablation that is the default has the default's name and settings."""
        return f"{self.task}-{self.request.split}-{self.flops}-{self.recovery}-seed{self.seed}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} {self.ablation}"

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""
        return {
            "task": self.task,
            "split": self.request.split,
            "max_eval": self.request.max_eval,
            "examples": self.examples,
            "seed": self.seed,
            "searched": self.searched,
            "config": dict(item for item in self.config.to_dict().items() if item not in _SINCE.items()),
            "tag": self.request.tag,
        }


def cells_of(request: Request, seeds: int, allowed: Mapping[str, Collection[str]]) -> list[Cell]:
    """The cells that pass the filters, those that share gradients next to each other."""
    cells = [cell for cell in _every_cell(request, seeds) if passes(cell, allowed)]
    return sorted(cells, key=lambda cell: list(TASKS).index(cell.task) * 10**9 + cell.seed * 10**6 + cell.examples)


def _every_cell(request: Request, seeds: int) -> Iterator[Cell]:
    for task in TASKS:
        for name, ablation in ABLATIONS.items():
            for flops in ablation.flops:
                for recovery in ablation.recoveries:
                    for seed in range(seeds):
                        yield Cell(task, flops, recovery, name, seed, request)
