"""Which models the study of static masks trains, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cell_arguments import passes
from study_cells import Request, classification_options
from study_runs import Run

DENSE, MOVEMENT, MAGNITUDE = "dense", "movement", "magnitude"
LOCAL, SCORE = "local", "score"
TAUGHT, PLAIN, NEW_HEAD = "taught", "unregularized", "trained-head"


@dataclass(frozen=True)
class Kind:
    """A way to make a model.

    Attributes:
        title: for tables.
        masking: of static masks; None for other ways.
        variant: how it deviates, one of `TAUGHT`, `PLAIN` and `NEW_HEAD`.
    """

    title: str
    masking: str | None = None
    variant: str | None = None


KINDS = {
    DENSE: Kind("full fine-tuning"),
    LOCAL: Kind("static mask, local", LOCAL),
    SCORE: Kind("static mask, score", SCORE),
    MOVEMENT: Kind("movement"),
    MAGNITUDE: Kind("magnitude"),
    "local-taught": Kind("static mask, local, with a teacher", LOCAL, TAUGHT),
    "score-taught": Kind("static mask, score, with a teacher", SCORE, TAUGHT),
    # The paper's ablations (its Tables 4 and 5) are of local masking, too.
    "local-unregularized": Kind("static mask, local, without regulariser", LOCAL, PLAIN),
    "local-trained-head": Kind("static mask, local, with a trained head", LOCAL, NEW_HEAD),
}
ABLATED = 0.1
ABLATIONS = {name: (ABLATED,) for name, kind in KINDS.items() if kind.variant}
# Task → kind of model → remaining weights.
TABLES: dict[str, dict[str, tuple[float, ...]]] = {
    "sst2": {
        DENSE: (1.0,),
        LOCAL: (0.8, 0.3, 0.1, 0.03),
        SCORE: (0.8, 0.3, 0.1, 0.03),
        MOVEMENT: (0.8, 0.1, 0.03),
        MAGNITUDE: (0.8, 0.1, 0.03),
        **ABLATIONS,
    },
    "qnli": {DENSE: (1.0,), LOCAL: (0.1, 0.03), SCORE: (0.1, 0.03), MOVEMENT: (0.1, 0.03)},
}
# Where every seed is trained; elsewhere only the first.
SEEDED = {("sst2", 1.0), ("sst2", ABLATED)}
LAYERS = r".*\.layer\..*"
LABEL_WORDS = {"sst2": "0=terrible,1=great", "qnli": "entailment=yes,not_entailment=no"}
# What `--only` can name.
FIELDS: dict[str, Collection[Any] | None] = {
    "task": TABLES,
    "kind": KINDS,
    "remaining": {level for kinds in TABLES.values() for levels in kinds.values() for level in levels},
    "seed": None,
}


@dataclass(frozen=True)
class Settings:
    """How the models are trained. Every model gets the same rows and the same number of optimizer steps.

    Rates are learning rates; `..._end` is the share of the steps after which the sparsity is reached, `frequency` the
    number of steps between two choices of masks that learn. Before `movement_begin` nothing is pruned, so that movement
    pruning has scores and a head to go by (its authors' warm-up).
    """

    rows: int = 8000
    batch: int = 32
    steps: int = 375
    rate: float = 5e-5
    movement_score_rate: float = 1e-2
    static_score_rate: float = 5e-2
    head_rate: float = 5e-4
    regularization: float = 50.0
    magnitude_prior: float = 10.0
    movement_begin: float = 0.3
    movement_end: float = 0.7
    weights_end: float = 0.5
    static_end: float = 0.7
    frequency: int = 5


@dataclass(frozen=True)
class Cell:
    """One trained model to be measured."""

    task: str
    kind: str
    remaining: float
    seed: int
    request: Request[Settings]

    @property
    def name(self) -> str:
        """A readable name for the cache."""
        return f"{self.task}-{self.kind}-{self.remaining}-{self.request.split}-seed{self.seed}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.task} {self.kind} {self.remaining} seed {self.seed}"

    @property
    def run(self) -> Run:
        """The training that makes it."""
        settings = self.request.settings
        teacher = None
        if self.kind == DENSE:
            options, rate = {}, settings.rate
        elif KINDS[self.kind].masking is None:
            options, rate = _weight_options(settings, self.kind, self.remaining), settings.rate
        else:
            options = _static_options(settings, KINDS[self.kind], self.remaining, LABEL_WORDS[self.task])
            rate = settings.head_rate if KINDS[self.kind].variant == NEW_HEAD else None
            if KINDS[self.kind].variant == TAUGHT:
                teacher = Cell(self.task, DENSE, 1.0, self.seed, self.request).run
        options |= classification_options(settings.batch, settings.steps, rate, self.seed)
        files = {"train_file": self.task, "model_name_or_path": "minilm"}
        name = f"{self.task}-{self.kind}-{self.remaining}"
        return Run("text_classification.py", name, options, files, teacher=teacher)

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""
        return self.request.measured_settings(self.run)


def _weight_options(settings: Settings, kind: str, remaining: float) -> dict[str, Any]:
    """The weights are trained, and pruned on the way."""
    options: dict[str, Any] = {"strategy": kind, "sparsity": _sparsity(remaining)}
    if kind == MAGNITUDE:
        # As the others, which leave embeddings and poolers alone by default.
        return options | {"target_modules": LAYERS, "end": settings.weights_end}
    schedule = {"begin": settings.movement_begin, "end": settings.movement_end, "frequency": settings.frequency}
    return options | {"score_learning_rate": settings.movement_score_rate, **schedule}


def _static_options(settings: Settings, kind: Kind, remaining: float, label_words: str) -> dict[str, Any]:
    """Only the mask is trained, and where there are no label words a new head."""
    return {
        "strategy": "static_mask",
        "sparsity": _sparsity(remaining),
        "masking": kind.masking,
        "score_learning_rate": settings.static_score_rate,
        "regularization": 0.0 if kind.variant == PLAIN else settings.regularization,
        "magnitude_prior": settings.magnitude_prior,
        "label_words": None if kind.variant == NEW_HEAD else label_words,
        "end": settings.static_end,
        "frequency": settings.frequency,
    }


def _sparsity(remaining: float) -> float:
    return round(1 - remaining, 6)


def cells_of(request: Request[Settings], seeds: int, allowed: Mapping[str, Collection[str]]) -> Iterator[Cell]:
    """The cells that pass the filters; the dense models of a task come first, since others are compared with them."""
    for task, kinds in TABLES.items():
        for kind, levels in kinds.items():
            for remaining in levels:
                for seed in range(seeds if (task, remaining) in SEEDED else 1):
                    cell = Cell(task, kind, remaining, seed, request)
                    if passes(cell, allowed):
                        yield cell
