"""Settings of SNIP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, get_args

from ...config import PruningConfig
from ...errors import PruningError
from ...gates.epsilon import Reduction
from ...gates.residual_mappings import MappingKind
from ...gates.spectral_parametrization import FORMS
from ...scores.activations import UsageRule
from ...setting_checks import (
    check_choices,
    check_counts,
    check_not_negative,
    check_unused,
    check_whole_numbers,
    is_number,
)

# What is pruned as a whole → the kinds of mappings that get gates.
UNITS: dict[str, tuple[MappingKind, ...]] = {
    "joint": ("heads", "feed_forward"),
    "heads": ("heads",),
    "feed_forward": ("feed_forward",),
    "attention": ("attention",),
    "sublayers": ("attention", "feed_forward"),
    "layers": ("layer",),
}
RULES = get_args(UsageRule)
REDUCTIONS = get_args(Reduction)


@dataclass
class SnipPruningConfig(PruningConfig):
    """Spectral-normalised identity priors (Lin et al. 2020): whole residual mappings go while a model is fine-tuned.

    The training is divided into a first stretch of ordinary fine-tuning and as many iterations. An iteration trains
    with gates that close on mappings whose outputs stay below ε, removes what was closed too often, and retrains. All
    sizes on the way are recorded, so one training shows the whole trade-off. Exactly one of `params`, `flops` and
    `max_metric_drop` says which size is wanted.
    """

    strategy: ClassVar[str] = "snip"
    at_once: ClassVar[bool] = False

    params: float | None = field(default=None, metadata={"help": "Fraction of the attention+FFN parameters to keep."})
    flops: float | None = field(default=None, metadata={"help": "Fraction of the attention+FFN FLOPs to keep."})
    max_metric_drop: float | None = field(
        default=None,
        metadata={
            "help": "Take the smallest model whose metric is at most this much worse than that of the model before the"
            " first removal; 0.01 is one point of accuracy."
        },
    )
    metric: str | None = field(
        default=None,
        metadata={
            "help": "The evaluation's metric for max_metric_drop. Default: the Trainer's"
            " metric_for_best_model, or the only one beside the loss."
        },
    )
    units: str = field(
        default="joint",
        metadata={
            "help": "What is removed as a whole: 'joint' (single heads, and FFNs), 'heads', 'feed_forward', 'attention'"
            " (all heads of a layer), 'sublayers' (attentions, and FFNs) or 'layers' (whose norms stay where a model"
            " normalises after the sum)."
        },
    )
    iterations: int = field(
        default=12, metadata={"help": "Iterations; with the fine-tuning before them they share the training equally."}
    )
    gated: float = field(default=0.5, metadata={"help": "Share of an iteration with gates; the rest is retraining."})
    measured: float = field(
        default=0.25, metadata={"help": "Share of an iteration, at its end, over which ε is estimated for the next."}
    )
    k: int = field(default=1, metadata={"help": "ε is the k-th smallest mean activation of a kind of mapping."})
    k_feed_forward: int | None = field(default=None, metadata={"help": "The same for FFNs. Default: k."})
    theta: float = field(
        default=0.95, metadata={"help": "Mappings go that are open in less than this share of the mini-batches."}
    )
    rule: str = field(
        default="open_rate",
        metadata={"help": "'open_rate' compares with theta; 'always_closed' removes what has not been open once."},
    )
    reduction: str = field(
        default="batch", metadata={"help": "Gates close for a whole mini-batch ('batch') or for single examples."}
    )
    most: float = field(
        default=0.1,
        metadata={"help": "Share of the dense cost that an iteration removes at most, but always one mapping."},
    )
    l1: float = field(
        default=0.01,
        metadata={"help": "Weights of gated sublayers shrink by this times the learning rate in every step."},
    )
    layer_rate_decay: float | None = field(
        default=None,
        metadata={"help": "Every layer learns at this times the rate of the layer above it; the paper has 0.8."},
    )
    spectral_norm: float | None = field(
        default=None,
        metadata={"help": "Bound on the largest singular value of attention and FFN weights while training, e.g. 5."},
    )
    spectral_form: str = field(
        default="clip",
        metadata={"help": "'clip' rescales weights above the bound only, 'divide' all of them to the bound."},
    )
    sequence_length: int | None = field(
        default=None, metadata={"help": "Tokens per sequence that FLOPs are counted for. Default: 128."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        goals = [f"{name}={getattr(self, name)}" for name in self._given("params", "flops", "max_metric_drop")]
        if len(goals) != 1:
            raise PruningError(
                "SnipPruningConfig needs exactly one of params, flops and max_metric_drop; got"
                f" {', '.join(goals) or 'none'}."
            )
        _check_shares(self, "theta", "most", *self._given("params", "flops", "layer_rate_decay"))
        check_not_negative(self, "l1", *self._given("max_metric_drop", "spectral_norm"))
        check_whole_numbers(self, iterations=1, k=1)
        check_counts(self, "k_feed_forward", "sequence_length")
        check_choices(self, units=UNITS, rule=RULES, reduction=REDUCTIONS, spectral_form=FORMS)
        self._check_division()
        self._check_used()

    def _given(self, *names: str) -> list[str]:
        """Those of the settings that are not None."""
        return [name for name in names if getattr(self, name) is not None]

    def _check_division(self) -> None:
        for name in ("gated", "measured"):
            value = getattr(self, name)
            if not (is_number(value) and 0 < value < 1):
                raise PruningError(f"{name}={value!r} must lie in (0, 1): it is a share of an iteration.")
        if self.gated + self.measured > 1:
            raise PruningError(
                f"gated={self.gated} and measured={self.measured} are shares of the same iteration: together at most 1."
            )

    def _check_used(self) -> None:
        """Refuses settings that would say nothing, or too much."""
        if self.spectral_norm == 0:
            raise PruningError("spectral_norm=0 would make every weight zero; give a bound above 0, 5 for instance.")
        if self.spectral_norm is None:
            check_unused(self, "without spectral_norm=", "spectral_form")
        if self.max_metric_drop is None:
            check_unused(self, "without max_metric_drop=", "metric")
        if "feed_forward" not in UNITS[self.units]:
            check_unused(self, f"with units={self.units!r}", "k_feed_forward")
        if self.rule == "always_closed":
            check_unused(self, "with rule='always_closed'", "theta")

    @property
    def goal(self) -> tuple[str, float] | None:
        """The keyword and value of the size that is wanted; None where a metric decides."""
        return next(((name, value) for name in ("params", "flops") if (value := getattr(self, name)) is not None), None)


def _check_shares(config: SnipPruningConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (is_number(value) and 0 < value <= 1):
            raise PruningError(f"{name}={value!r} must lie in (0, 1].")
