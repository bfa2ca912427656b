"""Settings of single-shot meta-pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...count_budgets import HeadBudgetConfig, check_given
from ...errors import PruningError
from ...setting_checks import check_choices, check_counts
from .meta_pruner import INPUT_TYPES


@dataclass
class SingleShotPruningConfig(HeadBudgetConfig):
    """Removes heads before fine-tuning, after one look at unlabelled text (Zhang et al. 2020).

    A `MetaPruner`, which `train_meta_pruner` trains on any model, scores the attention maps of the task's examples; the
    same number of heads stays in every layer, those with the highest mean scores. Where keys and values are shared, a
    KV group has the mean score of its heads.
    """

    strategy: ClassVar[str] = "single_shot"
    before_training: ClassVar[bool] = True
    BUDGETS: ClassVar[tuple[str, ...]] = ("heads",)

    heads: float | None = field(
        default=0.5, metadata={"help": "Fraction of each layer's heads (KV groups) to keep, rounded down."}
    )
    pruner_name_or_path: str | None = field(
        default=None, metadata={"help": "The meta-pruner, which has to be given: a folder or a name on the Hub."}
    )
    input_type: str | None = field(
        default=None,
        metadata={"help": "What an example of the task is, which has to be given: 'single' (one text) or 'pair'."},
    )
    examples: int | None = field(
        default=512, metadata={"help": "Examples that are looked at, None for all of the data."}
    )
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per sequence that costs are counted for. Default: the calibration data's mean."},
    )
    batch_size: int = field(default=32, metadata={"help": "Calibration examples per batch, where data comes as rows."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given(self, "heads")
        if not isinstance(self.pruner_name_or_path, str) or not self.pruner_name_or_path:
            raise PruningError(
                f"pruner_name_or_path={self.pruner_name_or_path!r} must name a MetaPruner: a folder that"
                " train_meta_pruner wrote, or a repository on the Hub."
            )
        check_choices(self, input_type=INPUT_TYPES)
        check_counts(self, "examples", "batch_size", "sequence_length")

    @property
    def needs_labels(self) -> bool:
        """Never: attention maps are all that is looked at."""
        return False
