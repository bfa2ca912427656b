"""Which models the study of head pruning makes, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cell_arguments import passes
from head_pruning_tasks import ALL_TASKS, STS
from study_cells import Request, classification_options
from study_runs import Run

META_TRAINING = "train_meta_pruner.py"
CUT = "benchmarks/head_pruning_cut.py"
TRAINING = "benchmarks/head_pruning_training.py"
PEAK_FILE = "peak_memory.json"

NONE, SINGLE_SHOT, RANDOM, HISP, RETRAINED, L0 = "none", "single-shot", "random", "hisp", "hisp-retrain", "l0"
KINDS = {
    NONE: "none",
    SINGLE_SHOT: "single-shot, before fine-tuning",
    RANDOM: "random, before fine-tuning",
    HISP: "HISP, after fine-tuning",
    RETRAINED: "HISP-retrain",
    L0: "L0, while fine-tuning",
}
HALF, SWEEP = 0.5, (0.75, 0.5, 0.25)
PRUNED = (SINGLE_SHOT, RANDOM, HISP, RETRAINED, L0)
# Task → kind → which share of the heads is kept.
TABLES: dict[str, dict[str, tuple[float, ...]]] = {
    **{name: {NONE: (1.0,), **dict.fromkeys(PRUNED, (HALF,))} for name in ("sst2", "mrpc")},
    "qnli": {NONE: (1.0,), **dict.fromkeys(PRUNED, SWEEP)},
    STS.name: {NONE: (1.0,), SINGLE_SHOT: SWEEP, RANDOM: SWEEP},
}
# What `--only` can name.
FIELDS: dict[str, Collection[Any] | None] = {
    "task": TABLES,
    "kind": KINDS,
    "heads": {1.0, *SWEEP},
    "seed": None,
}


@dataclass(frozen=True)
class Settings:
    """How the pruner and the models are trained. Every fine-tuning has the same number of steps.

    `episodes` and what follows are the meta-training's; `rate` is that of fine-tuning, `scored` the number of examples
    by which heads are chosen, `l0_end` and `l0_rate` are of L0's gates.
    """

    rows: int = 4000
    batch: int = 32
    steps: int = 375
    rate: float = 5e-5
    scored: int = 1024
    l0_end: float = 0.5
    l0_rate: float = 0.1
    episodes: int = 600
    episodes_per_update: int = 4
    episode_examples: int = 60
    episode_scored: int = 8
    eval_updates: int = 25
    validation_episodes: int = 8
    meta_rate: float = 2e-3
    objective: str = "paper"


@dataclass(frozen=True)
class Cell:
    """One model to be measured; `heads` is the share of the heads that it keeps."""

    task: str
    kind: str
    heads: float
    seed: int
    request: Request[Settings]

    @property
    def name(self) -> str:
        """A readable name for the cache."""
        return f"{self.task}-{self.kind}-{self.heads}-{self.request.split}-seed{self.seed}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.task} {self.kind} {self.heads} seed {self.seed}"

    @property
    def run(self) -> Run:
        """The last step of what makes it."""
        settings = self.request.settings
        if self.task == STS.name or self.kind == HISP:
            return cut(settings, self.task, self.kind, self.heads, self.seed)
        return fine_tuning(settings, self.task, self.kind, self.heads, self.seed)

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""
        return self.request.measured_settings(self.run)


def meta_training(settings: Settings) -> Run:
    """The training of the pruner, which is the same for all tasks."""
    options = {
        "episodes": settings.episodes,
        "episodes_per_update": settings.episodes_per_update,
        "episode_examples": settings.episode_examples,
        "scored_examples": settings.episode_scored,
        "eval_updates": settings.eval_updates,
        "validation_episodes": settings.validation_episodes,
        "optimizer": "adamw",
        "learning_rate": settings.meta_rate,
        "objective": settings.objective,
        "resume": True,
    }
    files = {"model_name_or_path": "minilm", "single_files": "single_files", "pair_files": "pair_files"}
    return Run(META_TRAINING, "pruner", options, files)


def fine_tuning(settings: Settings, task: str, kind: str, heads: float, seed: int) -> Run:
    """A classifier, of a model that was pruned before or is pruned meanwhile."""
    options = classification_options(settings.batch, settings.steps, settings.rate, seed)
    if kind == L0:
        gates = {"end": settings.l0_end, "gate_learning_rate": settings.l0_rate}
        options = {"strategy": "l0", "heads": heads, **gates, **options}
    files, parent = {"train_file": task}, None
    if kind in (NONE, L0):
        files["model_name_or_path"] = "minilm"
    else:
        parent = cut(settings, task, kind, heads, seed)
    return Run(TRAINING, f"{task}-{kind}-{heads}", options, files, parent)


def cut(settings: Settings, task: str, kind: str, heads: float, seed: int) -> Run:
    """The removal of heads, from the fine-tuned model (HISP) or from the one that all begin with."""
    options: dict[str, Any] = {"heads": heads, "max_train_samples": settings.scored}
    files, parent = {"train_file": task}, None
    if kind in (HISP, RETRAINED):
        options["strategy"] = "head_importance"
        parent = fine_tuning(settings, task, NONE, 1.0, seed)
    else:
        files["model_name_or_path"] = "minilm"
    if kind == SINGLE_SHOT:
        input_type = ALL_TASKS[task].input_type
        options |= {"strategy": "single_shot", "input_type": input_type, "examples": settings.scored}
        # Found by the name of its folder, so that a cut is made anew where the pruner is another one.
        files["pruner_name_or_path"] = meta_training(settings).folder
    elif kind in (RANDOM, NONE):
        options |= {"strategy": "random", "seed": seed}
    return Run(CUT, f"{task}-cut-{options['strategy']}-{heads}", options, files, parent)


def cells_of(request: Request[Settings], seeds: int, allowed: Mapping[str, Collection[str]]) -> Iterator[Cell]:
    """The cells that pass the filters; models that are not pruned come first, since others are compared with them."""
    for task, kinds in TABLES.items():
        for kind, levels in kinds.items():
            for heads in levels:
                for seed in range(seeds if has_seeds(task, kind, heads) else 1):
                    cell = Cell(task, kind, heads, seed, request)
                    if passes(cell, allowed):
                        yield cell


def has_seeds(task: str, kind: str, heads: float) -> bool:
    """Whether a cell is measured with every seed: at random everywhere, and fine-tuning where half of the heads go."""
    return kind == RANDOM or (task != STS.name and heads in (HALF, 1.0))
