"""The trade-off curve of a strategy inside a `Trainer`: its levels are evaluated and recorded when they are reached.

Each function does nothing where the strategy has no levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from .config import PruningConfig, training_for
from .errors import PruningError
from .processes import wait_for_all
from .strategies.levels import LevelsPruner
from .strategies.training import TrainingPruner


def check_evaluates(config: PruningConfig, args: TrainingArguments) -> None:
    """Raises a PruningError where a metric is to decide in a training that does not evaluate."""
    strategy = training_for(config)
    has_levels = isinstance(strategy, type) and issubclass(strategy, LevelsPruner)
    drop = getattr(config, "max_metric_drop", None)
    if has_levels and drop is not None and args.eval_strategy == "no":
        raise PruningError(
            f"max_metric_drop={drop} chooses a level by its metric, but the Trainer does not evaluate: set"
            " eval_strategy in the TrainingArguments, and give the Trainer an eval_dataset."
        )


def prepare_levels(pruner: TrainingPruner, args: TrainingArguments) -> None:
    """Says where levels are written, and which metric decides, as far as the Trainer's arguments know."""
    if isinstance(pruner, LevelsPruner):
        pruner.folder = Path(args.output_dir)
        if args.metric_for_best_model is not None:
            pruner.decide_by(args.metric_for_best_model, args.greater_is_better is not False)


def reach_level(pruner: TrainingPruner, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
    """After a step: has a level that has been reached evaluated, or records it at once if nothing is."""
    if not isinstance(pruner, LevelsPruner):
        return
    if pruner.step >= pruner.steps:
        pruner.level_due = True  # no step has said so where mixed precision gave up the last one
    if pruner.level_due:
        if args.eval_strategy == "no":
            _record(pruner, state, {})
        else:
            control.should_evaluate = True


def evaluate_level(pruner: TrainingPruner | None, state: TrainerState, metrics: Mapping[str, Any]) -> None:
    """After an evaluation: records the level, and of further evaluation data sets what they gave."""
    if isinstance(pruner, LevelsPruner):
        if pruner.level_due:
            _record(pruner, state, metrics)
        else:
            pruner.add_metrics(metrics, write=state.is_world_process_zero)


def record_best(pruner: TrainingPruner, state: TrainerState) -> None:
    """After the best checkpoint has been loaded: it takes the place of the level of its size."""
    if isinstance(pruner, LevelsPruner):
        logged = [row for row in state.log_history if row["step"] == pruner.step]
        metrics = {name: value for row in logged for name, value in row.items() if name.startswith("eval_")}
        _record(pruner, state, metrics)


def _record(pruner: LevelsPruner, state: TrainerState, metrics: Mapping[str, Any]) -> None:
    pruner.record_level(metrics, write=state.is_world_process_zero)
    wait_for_all()
