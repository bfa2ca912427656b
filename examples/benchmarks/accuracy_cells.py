"""Which cells the accuracy table has."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from accuracy_training import Training
from cell_arguments import passes, split_of
from config_keys import PAPER_SCORES, config_key
from tasks import TASKS

from hf_prune import FisherPruningConfig

FLOPS = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
RECOVERIES = ("none", "mask_tuning", "weights")
REPAIRS = RECOVERIES[1:]
EXAMPLES = 2048
# The paper's scores with each recovery, beside which everything else stands.
FULL = "full"
ABLATION_FLOPS = (0.6, 0.4)
# Where scores differ most.
SMALL_FLOPS = (0.5, 0.4, 0.3, 0.2)
TRAINED_FLOPS = (0.3, 0.2)


@dataclass(frozen=True)
class Ablation:
    """One deviation from the paper's pipeline.

    Attributes:
        title: what it is, for the table.
        settings: of the configuration.
        examples: calibration examples.
        searched: whether the budget is divided between heads and filters by the search; otherwise the same fraction
            of both is kept, those with the highest scores over all layers.
        flops: the budgets that it is measured at.
        recoveries: the repairs that it is measured with.
        of_mode: whether it is a way to prune far, and no ablation of the paper's.
        trained: whether recovery training follows, which is measured with one calibration sample only.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: int = EXAMPLES
    searched: bool = True
    flops: tuple[float, ...] = ABLATION_FLOPS
    recoveries: tuple[str, ...] = RECOVERIES
    of_mode: bool = False
    trained: bool = False


def _mode(title: str, **settings: Any) -> Ablation:
    return Ablation(title, settings, flops=SMALL_FLOPS, recoveries=("weights",), of_mode=True)


def trained(ablation: str) -> str:
    """The name of what an ablation is when recovery training follows."""
    return f"{ablation}_trained"


def _with_training(ablation: Ablation) -> Ablation:
    recoveries = ablation.recoveries if ablation.of_mode else REPAIRS
    title = f"{ablation.title}, then recovery training"
    return replace(ablation, title=title, flops=TRAINED_FLOPS, recoveries=recoveries, of_mode=True, trained=True)


_UNTRAINED = {
    FULL: Ablation(f"Fisher scores, {EXAMPLES:,} examples", flops=FLOPS),
    "no_search": Ablation("without search", searched=False),
    # Whether units are rearranged by default depends on the recovery, so one of these two is always as above.
    "rearrangement": Ablation("with rearrangement", {"rearrange": True}),
    "no_rearrangement": Ablation("without rearrangement", {"rearrange": False}),
    "uniform": Ablation("every layer alike", {"uniform": True}),
    "gradient": Ablation("importance: first-order gradient", {"importance": "gradient"}),
    "magnitude": Ablation("importance: weight magnitude", {"importance": "magnitude"}),
    "model_labels": _mode("Fisher scores, the model's own labels", labels="model"),
    "blended": _mode(
        "Fisher scores and contributions, blended by trial, the model's own labels",
        importance="blended",
        labels="model",
    ),
    "after_refit": _mode("scores after the refit (the default)", importance="after_refit"),
    "after_refit_model_labels": _mode(
        "scores after the refit, the model's own labels (the default without labels)",
        importance="after_refit",
        labels="model",
    ),
    "iterative": _mode("scores after the refit, iterative", importance="after_refit", iterative=True),
    "512_examples": Ablation("512 examples", examples=512),
    "4096_examples": Ablation("4,096 examples", examples=4096),
}
ABLATIONS = _UNTRAINED | {
    trained(name): _with_training(ablation) for name, ablation in _UNTRAINED.items() if ablation.of_mode or name == FULL
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
        training: settings of the recovery training.
    """

    split: str
    max_eval: int | None
    max_calibration: int | None
    settings: Mapping[str, Any]
    tag: str
    training: Training = field(default_factory=Training)

    @classmethod
    def of(cls, arguments: argparse.Namespace, training: Training | None = None) -> Request:
        """What the options ask for.

        Raises:
            ValueError: a value that is not JSON.
        """
        settings = {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments.set)}
        split = split_of(arguments)
        return cls(
            split, arguments.max_eval, arguments.max_calibration, settings, arguments.tag, training or Training()
        )

    def examples(self, wanted: int) -> int:
        """Calibration examples, of as many as are wanted."""
        return wanted if self.max_calibration is None else min(wanted, self.max_calibration)


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
        return self.request.examples(ABLATIONS[self.ablation].examples)

    @property
    def searched(self) -> bool:
        """See `Ablation`."""
        return ABLATIONS[self.ablation].searched

    @property
    def config(self) -> FisherPruningConfig:
        """The configuration that is measured."""
        settings = {**PAPER_SCORES, **self.request.settings, **ABLATIONS[self.ablation].settings}
        if self.recovery == "none":
            settings.pop("refit_examples", None)
        return FisherPruningConfig(flops=self.flops, recovery=self.recovery, **settings)

    @property
    def training(self) -> Training | None:
        """The recovery training that follows; None for none."""
        return self.request.training if ABLATIONS[self.ablation].trained else None

    @property
    def sample(self) -> tuple[str, int, int]:
        """Cells with the same value share their calibration sample, and what is measured on it."""
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
        config, training = self.config, self.training
        return {
            "task": self.task,
            "split": self.request.split,
            "max_eval": self.request.max_eval,
            "examples": self.examples,
            "seed": self.seed,
            "searched": self.searched,
            # Whether rearrangement was asked for or is the default, the model is the same.
            "config": config_key(config) | {"rearrange": config.rearranges or config.rearrange},
            "tag": self.request.tag,
            **({"training": asdict(training)} if training is not None else {}),
        }


def cells_of(request: Request, seeds: int, allowed: Mapping[str, Collection[str]]) -> list[Cell]:
    """The cells that pass the filters, those that share a calibration sample next to each other."""
    cells = [cell for cell in _every_cell(request, seeds) if passes(cell, allowed)]
    return sorted(cells, key=lambda cell: list(TASKS).index(cell.task) * 10**9 + cell.seed * 10**6 + cell.examples)


def _every_cell(request: Request, seeds: int) -> Iterator[Cell]:
    for task in TASKS:
        for name, ablation in ABLATIONS.items():
            for flops in ablation.flops:
                for recovery in ablation.recoveries:
                    for seed in range(min(seeds, 1) if ablation.trained else seeds):
                        yield Cell(task, flops, recovery, name, seed, request)
