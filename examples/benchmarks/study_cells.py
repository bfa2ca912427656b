"""What the cells of every study of trainings have in common."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cell_arguments import parse_settings, split_of
from study_runs import Run

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Request(Generic[Settings]):
    """What all cells have in common.

    Attributes:
        split: "dev" or "held_out", see `tasks.TaskRows`.
        max_eval: evaluation rows; None for all.
        settings: of the trainings.
        tag: a name for the state of the code that is measured.
    """

    split: str
    max_eval: int | None
    settings: Settings
    tag: str

    @classmethod
    def of(cls, arguments: argparse.Namespace, defaults: Settings) -> Request[Settings]:
        """What the options ask for.

        Raises:
            ValueError: a setting that there is not.
        """
        return cls(split_of(arguments), arguments.max_eval, parse_settings(arguments.set, defaults), arguments.tag)

    def measured_settings(self, run: Run) -> dict[str, Any]:
        """Everything that numbers measured of a run's model depend on, except for the code."""
        return {**run.settings(), "split": self.split, "max_eval": self.max_eval, "tag": self.tag}


def classification_options(batch: int, steps: int, rate: float | None, seed: int) -> dict[str, Any]:
    """Options of `text_classification.py`: so many steps at a falling rate, after a tenth of them to warm up.

    Args:
        batch: rows of a step.
        steps: of the optimizer.
        rate: of learning; None where nothing is left to the Trainer's optimizer.
        seed: of the order of the rows, of dropout and of a new head.
    """
    return {
        "per_device_train_batch_size": batch,
        "learning_rate": rate,
        "warmup_steps": steps // 10,
        "max_steps": steps,
        "train_sampling_strategy": "group_by_length",
        "save_strategy": "no",
        "logging_steps": 50,
        "seed": seed,
    }
