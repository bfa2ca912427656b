"""Settings of fast post-training pruning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import PruningError
from ...metric_budget import MetricBudgetConfig
from ...setting_checks import check_choices, check_counts, check_flags, check_not_negative, check_unused, is_number

_CHOICES = {
    "importance": (None, "after_refit", "fisher", "blended", "gradient", "magnitude"),
    "labels": (None, "data", "model"),
    "recovery": ("weights", "mask_tuning", "none"),
    "solver": ("direct", "lsmr"),
    "order": ("forward", "backward"),
}


@dataclass
class FisherPruningConfig(MetricBudgetConfig):
    """Fast post-training pruning of heads and filters (Kwon et al. 2022): no training, minutes, one budget.

    The paper's own pipeline is `recovery="mask_tuning"`; the default refits the output projections instead, which
    loses less accuracy, and chooses units by what that refit cannot make up for (`importance="after_refit"`, as ZipLM
    does, Kurtic et al. 2023, with Fisher information in place of the output's plain error). `importance="fisher"` are
    the paper's scores. Where the calibration data has no labels, the model's own predictions take their place.

    `iterative=True` decides group by group, as Park et al. (2024, "K-prune") do sublayer by sublayer: each group is cut
    and repaired before the units of those that are left are scored anew, on the model as it is by then. By default
    that takes at most four passes over the calibration data, counting as one what it takes to score all units once,
    and as another what it takes to repair all blocks. With order="forward" the calibration data goes on from where the
    repair is, so the scores of the second of four groups take 3/4 of a pass: 1 + 3/4 + 1/2 + 1/4 for four, and 1 for
    the repair. With order="backward" everything runs again for every group: 2 for the scores of two groups, and 1.5 for
    repairs.
    """

    strategy: ClassVar[str] = "fisher"
    resumes: ClassVar[bool] = True

    importance: str | None = field(
        default=None,
        metadata={
            "help": "Score of a unit: 'after_refit' (what is lost although the others are refitted), 'fisher' (squared"
            " gradients), 'blended' (see blend), 'gradient' or 'magnitude'. Default: 'after_refit' where the others are"
            " refitted (recovery='weights' without rearrange), else 'fisher'."
        },
    )
    blend: float | None = field(
        default=None,
        metadata={
            "help": "Share of what a unit contributes to its block's output in 'blended' scores; the rest is 'fisher'."
            " Default: of 0, 0.25, 0.5 and 0.75 the best by trial on calibration data."
        },
    )
    labels: str | None = field(
        default=None,
        metadata={
            "help": "Whose labels gradients are taken for: those in the 'data', or the 'model''s own predictions"
            " (not for importance='gradient'). Default: those in the data if it has any, else the model's."
        },
    )
    rearrange: bool | None = field(
        default=None,
        metadata={
            "help": "Reselect units within each block with the full Fisher matrix. Default: unless recovery is"
            " 'weights', which gains more from the units that matter by themselves."
        },
    )
    recovery: str = field(
        default="weights",
        metadata={"help": "Repair without training: 'weights' (refit), 'mask_tuning' (the paper's) or 'none'."},
    )
    solver: str = field(
        default="direct", metadata={"help": "Mask tuning's solver: 'direct' or 'lsmr' (SciPy; CuPy on CUDA)."}
    )
    damp: float = field(default=1.0, metadata={"help": "Damping of mask tuning."})
    refit_examples: int | None = field(
        default=1024,
        metadata={
            "help": "Calibration examples used for the repair, None for all. Their hidden states are kept four times,"
            " in memory or, where the model's weights are offloaded, in files."
        },
    )

    iterative: bool = field(
        default=False,
        metadata={
            "help": "Decide a group of sublayers at a time, with scores of the model as cut and repaired so far."
        },
    )
    group_size: int | None = field(
        default=None,
        metadata={
            "help": "With iterative: sublayers that are decided together, 1 for each by itself; all experts of a layer"
            " are one. Default: a quarter of all, or half of all with order='backward'."
        },
    )
    order: str = field(
        default="forward",
        metadata={"help": "With iterative: 'forward', the first layers first, or 'backward', which takes longer."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, **_CHOICES)
        if self.rearrange not in (None, True, False):
            raise PruningError(f"rearrange={self.rearrange!r} must be True, False or None.")
        self._check_importance()
        check_not_negative(self, "damp")
        check_counts(self, "refit_examples", "group_size")
        self._check_repair()
        check_flags(self, "iterative")
        self._check_groups()

    def _check_importance(self) -> None:
        if self.blend is not None:
            if self.importance != "blended":
                raise PruningError(f"blend={self.blend!r} needs importance='blended', not {self.importance!r}.")
            if not is_number(self.blend) or not 0 <= self.blend <= 1:
                raise PruningError(f"blend={self.blend!r} must lie in [0, 1], or be None to choose it by trial.")
        if self.labels == "model" and (self.importance == "gradient" or not self.needs_gradients):
            raise PruningError(
                f"labels='model' says nothing with importance={self.importance!r}: the expected squares of gradients"
                " are what does without labels. Use importance='fisher' or 'after_refit'."
            )
        if self.importance == "after_refit" and (self.recovery != "weights" or self.rearranges):
            raise PruningError(
                "importance='after_refit' counts on the refit of the units that it keeps: leave recovery at 'weights'"
                " and rearrange at its default, or use importance='fisher'."
            )

    def _check_repair(self) -> None:
        if self.recovery == "none" and self.scores != "blended":  # whose energies are of as many examples
            check_unused(self, "with recovery='none', which repairs nothing", "refit_examples")
        if self.recovery != "mask_tuning":
            where = (
                f"with recovery={self.recovery!r}, it is of mask tuning: use recovery='mask_tuning', or leave it out"
            )
            check_unused(self, where, "solver", "damp")

    def _check_groups(self) -> None:
        if not self.iterative:
            check_unused(self, "without iterative=True", "order", "group_size")
            return
        if self.recovery == "none":
            raise PruningError("iterative=True repairs every group: use it with another recovery than 'none'.")
        if self.importance == "magnitude":
            raise PruningError(
                "importance='magnitude' is the same however much is cut, so iterative=True would change nothing: use"
                " another importance."
            )
        if self.uniform:
            raise PruningError(
                "uniform=True gives every layer the same width, so nothing can be decided after the first group: leave"
                " iterative=True or uniform=True out."
            )

    @property
    def rearranges(self) -> bool:
        """Whether units are reselected within each block."""
        return self.recovery != "weights" if self.rearrange is None else self.rearrange

    @property
    def scores(self) -> str:
        """The importance that counts: what is chosen, or the default for how units are repaired."""
        refitted = self.recovery == "weights" and not self.rearranges
        return self.importance or ("after_refit" if refitted else "fisher")

    @property
    def needs_gradients(self) -> bool:
        """Whether anything rests on passes backward over the calibration data."""
        return self.scores != "magnitude" or self.rearranges

    @property
    def takes_labels(self) -> bool:
        """Whether gradients are needed, and for the labels in the data if it has any."""
        return self.labels != "model" and self.needs_gradients

    @property
    def needs_labels(self) -> bool:
        """Whether the model's own labels cannot take the place of those in the data."""
        return self.takes_labels and (self.labels == "data" or self.importance == "gradient")
