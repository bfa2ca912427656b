"""Settings of the removal of whole layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...budget.layer_choice import PLACES
from ...count_budgets import LayerBudgetConfig, check_given
from ...setting_checks import check_choices, check_counts


@dataclass
class LayerDropPruningConfig(LayerBudgetConfig):
    """Removes whole layers by their place (Sajjad et al. 2023) or by how little they do; repairs and trains nothing.

    Only `which="score"` needs calibration data, without labels.
    """

    strategy: ClassVar[str] = "layer_drop"
    BUDGETS: ClassVar[tuple[str, ...]] = ("layers",)

    which: str = field(
        default="top",
        metadata={
            "help": "Layers that go: 'top' (the last ones), 'bottom', 'alternate' (spread evenly: every other one where"
            " half of them go), 'middle', or 'score': those whose output is most like their input on calibration data"
            " (Block Influence).",
        },
    )
    sequence_length: int | None = field(
        default=None,
        metadata={"help": "Tokens per sequence that costs are counted for. Default: the calibration data's mean."},
    )
    batch_size: int = field(default=32, metadata={"help": "Calibration examples per batch, where data comes as rows."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given(self, "layers")
        check_choices(self, which=(*PLACES, "score"))
        check_counts(self, "sequence_length", "batch_size")

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        """Only where layers are chosen by what they do."""
        return self.which == "score"

    @property
    def needs_labels(self) -> bool:
        """Never: what layers do to their input is all that counts."""
        return False
