"""Settings of pruning by head importance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...count_budgets import HeadBudgetConfig, check_given
from ...setting_checks import check_choices, check_counts, check_flags, check_unused, check_whole_numbers


@dataclass
class HeadImportancePruningConfig(HeadBudgetConfig):
    """Removes the heads whose gates the loss depends on least (Michel et al. 2019, HISP); repairs and trains nothing.

    Calibration data needs labels, for the loss. For what is called HISP-retrain, train the pruned model afterwards, or
    give `retrain=` to `prune_model`.
    """

    strategy: ClassVar[str] = "head_importance"
    resumes: ClassVar[bool] = True
    BUDGETS: ClassVar[tuple[str, ...]] = ("heads",)

    scope: str = field(
        default="global",
        metadata={"help": "Where heads compete: 'global', or 'layer' (every layer keeps the same fraction)."},
    )
    normalize: bool = field(
        default=True, metadata={"help": "Divide the scores of each layer by their ℓ2 norm before they are compared."}
    )
    iterations: int = field(
        default=1, metadata={"help": "Rounds of pruning; each scores the heads that are left anew, on all of the data."}
    )
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per sequence that costs are counted for. Default: the calibration data's mean."},
    )
    batch_size: int = field(default=32, metadata={"help": "Calibration examples per batch, where data comes as rows."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given(self, "heads")
        check_choices(self, scope=("global", "layer"))
        check_counts(self, "batch_size", "sequence_length")
        check_flags(self, "normalize")
        check_whole_numbers(self, iterations=1)
        if self.scope == "layer":
            check_unused(self, "with scope='layer', where no layer is compared with another", "normalize")
