"""How a meta-pruner is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import PruningError
from ...setting_checks import (
    check_choices,
    check_counts,
    check_fraction,
    check_not_negative,
    check_positive,
    check_whole_numbers,
)

# The least that each may be.
_COUNTS = {
    "episodes": 1,
    "episode_examples": 2,
    "episodes_per_update": 1,
    "scored_at_once": 1,
    "validation_episodes": 1,
    "eval_updates": 1,
    "seed": 0,
}


@dataclass
class MetaTrainingArguments:
    """Settings of `train_meta_pruner`; validated when they are made. The defaults are the paper's (section 4.1)."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Where the pruner goes, and what going on with an interrupted run takes."}
    )
    heads: float = field(default=0.5, metadata={"help": "Fraction of each layer's heads that an episode keeps."})
    episodes: int = field(default=48_000, metadata={"help": "Episodes of the whole training, over all processes."})
    episode_examples: int = field(default=60, metadata={"help": "Texts of an episode."})
    episodes_per_update: int = field(default=8, metadata={"help": "Episodes that share a step of the optimizer."})
    scored_examples: int | None = field(
        default=None,
        metadata={"help": "Texts of an episode whose attention is scored. Default: all; fewer take less time."},
    )
    scored_at_once: int = field(
        default=8, metadata={"help": "Texts whose maps are in memory together; batch normalisation sees so many."}
    )
    optimizer: str = field(default="sgd", metadata={"help": "'sgd' (the paper's) or 'adamw', without weight decay."})
    learning_rate: float = field(default=0.02, metadata={"help": "Constant. For 'adamw' try 0.002."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    objective: str = field(
        default="paper",
        metadata={"help": "'paper' (Eq. 3 to 5) or 'authors', the somewhat different loss of the authors' code."},
    )
    pair_vector: str = field(
        default="first_token",
        metadata={
            "help": "What represents a pair: 'first_token', 'pooler' (the authors' code) or 'mean'. Single texts are"
            " represented by the mean of their tokens."
        },
    )
    score_scale: float = field(
        default=2.0,
        metadata={"help": "The logits of the draw are the scores times this; 2 is the authors'."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Of the relaxation that gradients go through."})
    pruned_layers: float = field(
        default=1.0,
        metadata={"help": "Fraction of the layers that an episode prunes, drawn at random; the authors' code has 0.5."},
    )
    size_exponent: float = field(
        default=0.2, metadata={"help": "An episode's data set is drawn with weight rows ** this; 0 for equal weights."}
    )
    validation_share: float = field(default=0.1, metadata={"help": "Fraction of each data set's rows for validation."})
    validation_episodes: int = field(default=16, metadata={"help": "Episodes that a validation loss is the mean of."})
    eval_updates: int = field(default=100, metadata={"help": "Optimizer steps between validations."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})

    def __post_init__(self) -> None:
        check_choices(
            self,
            objective=("paper", "authors"),
            pair_vector=("first_token", "pooler", "mean"),
            optimizer=("sgd", "adamw"),
        )
        check_counts(self, "scored_examples")
        check_whole_numbers(self, **_COUNTS)
        check_fraction(self, "heads", "pruned_layers", "validation_share")
        check_not_negative(self, "size_exponent")
        check_positive(self, "learning_rate", "max_grad_norm", "score_scale", "temperature")
        if self.validation_share == 1:
            raise PruningError("validation_share=1 leaves nothing to train on; the paper has 0.1.")
        if self.objective == "authors" and self.episode_examples % 2:
            raise PruningError(
                f"episode_examples={self.episode_examples} must be even for objective='authors', which compares"
                " similarities in pairs."
            )
        if self.episodes % self.episodes_per_update:
            raise PruningError(
                f"episodes={self.episodes} must be a multiple of episodes_per_update={self.episodes_per_update}."
            )

    @property
    def updates(self) -> int:
        """Steps of the optimizer."""
        return self.episodes // self.episodes_per_update
