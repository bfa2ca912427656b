"""Which models the study "Compressing BERT" trains, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cell_arguments import passes
from study_cells import Request, classification_options
from study_runs import Run

# Table → kind of model → levels. What is random has no level 0 of its own, and what is deleted neither.
TABLES: dict[str, dict[str, tuple[float, ...]]] = {
    "pre-training": {"pruned": (0.0, 0.3, 0.5, 0.7, 0.9), "deleted": (0.5, 0.9), "random": (0.5, 0.9)},
    "fine-tuning": {
        "during": (0.0, 0.3, 0.4, 0.6, 0.8, 0.9),
        "after": (0.0, 0.3, 0.4, 0.6, 0.8, 0.9),
        "random": (0.4, 0.8),
        "random after": (0.4, 0.8),
    },
}
# What `--only` can name.
FIELDS: dict[str, Collection[Any] | None] = {
    "table": TABLES,
    "kind": {kind for kinds in TABLES.values() for kind in kinds},
    "sparsity": {level for kinds in TABLES.values() for levels in kinds.values() for level in levels},
    "seed": None,
}
# Without dropout: a quarter of an hour is too short to fit the texts too closely.
SMALL_BERT = (
    "hidden_size=256,num_hidden_layers=4,num_attention_heads=4,intermediate_size=1024,max_position_embeddings=128,"
    "hidden_dropout_prob=0.0,attention_probs_dropout_prob=0.0"
)


@dataclass(frozen=True)
class Settings:
    """How the models are trained. Steps are optimizer steps; every model of a table gets the same number."""

    vocabulary: int = 4000
    pretraining_batch: int = 8
    pretraining_steps: int = 1400
    pretraining_rate: float = 1e-3
    continued_steps: int = 280
    mlm_blocks: int = 512
    rows: int = 8000
    batch: int = 32
    small_steps: int = 400
    small_rate: float = 2e-4
    minilm_steps: int = 375
    minilm_after_steps: int = 125
    minilm_rate: float = 5e-5


@dataclass(frozen=True)
class Cell:
    """One fine-tuned model to be measured."""

    table: str
    kind: str
    sparsity: float
    seed: int
    request: Request[Settings]

    @property
    def name(self) -> str:
        """A readable name for the cache."""
        return f"{self.table}-{self.kind}-{self.sparsity}-{self.request.split}-seed{self.seed}".replace(" ", "-")

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.table} {self.kind} {self.sparsity} seed {self.seed}"

    @property
    def dense(self) -> tuple[str, str, float]:
        """Table, kind and level of the dense model that it is compared with, trained for as many steps."""
        if self.table == "pre-training":
            return self.table, "pruned", 0.0
        return self.table, "after" if self.kind.endswith("after") else "during", 0.0

    @property
    def run(self) -> Run:
        """The training that ends with the model to be measured."""
        settings = self.request.settings
        if self.table == "pre-training":
            return fine_tuned_small(settings, self.kind, self.sparsity, self.seed)
        return fine_tuned_minilm(settings, self.kind, self.sparsity, self.seed)

    def settings(self) -> dict[str, Any]:
        """Everything that the measured numbers depend on, except for the code."""
        return self.request.measured_settings(self.run)


def pretrained(settings: Settings) -> Run:
    """The dense small BERT, trained at a rate that does not fall: what follows is the end of this training."""
    options = {
        **_masked_lm(settings, settings.pretraining_steps, seed=0),
        "config_overrides": SMALL_BERT,
        "vocabulary_size": settings.vocabulary,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": max(1, settings.pretraining_steps // 10),
    }
    return Run("masked_lm.py", "pretrained", options, {**_TEXTS, "tokenizer_name": "minilm"})


def continued(settings: Settings, kind: str, sparsity: float, seed: int) -> Run:
    """The end of pre-training, at a falling rate, in which the model is pruned."""
    options = {
        **_masked_lm(settings, settings.continued_steps, seed),
        **_strategy("random" if kind == "random" else "magnitude", sparsity),
        "lr_scheduler_type": "linear",
        "warmup_steps": min(10, settings.continued_steps // 2),
    }
    return Run("masked_lm.py", f"continued-{kind}-{sparsity}", options, _TEXTS, pretrained(settings))


def fine_tuned_small(settings: Settings, kind: str, sparsity: float, seed: int) -> Run:
    """The small BERT on SST-2: zeros are held, or where information was only deleted, free."""
    # Deletion is pruning in pre-training and nothing afterwards (Gordon et al. 2020, section 3.3).
    parent = continued(settings, "pruned" if kind == "deleted" else kind, sparsity, seed)
    options = classification_options(settings.batch, settings.small_steps, settings.small_rate, seed)
    if sparsity and kind != "deleted":
        options["strategy"] = "hold"
    return Run("text_classification.py", f"small-{kind}-{sparsity}", options, _ROWS, parent)


def fine_tuned_minilm(settings: Settings, kind: str, sparsity: float, seed: int) -> Run:
    """MiniLM on SST-2, pruned gradually while it is fine-tuned, or at one go afterwards and trained on."""
    strategy = _strategy("random" if kind.startswith("random") else "magnitude", sparsity)
    name = f"minilm-{kind}-{sparsity}".replace(" ", "-")
    if not kind.endswith("after"):
        options = classification_options(settings.batch, settings.minilm_steps, settings.minilm_rate, seed) | strategy
        return Run("text_classification.py", name, options, {**_ROWS, "model_name_or_path": "minilm"})
    parent = fine_tuned_minilm(settings, "during", 0.0, seed)
    options = classification_options(settings.batch, settings.minilm_after_steps, settings.minilm_rate, seed) | strategy
    if strategy:
        options |= {"begin": 0, "end": 0}
    return Run("text_classification.py", name, options, _ROWS, parent)


_TEXTS = {"train_file": "wikitext2-train", "validation_file": "wikitext2-valid"}
_ROWS = {"train_file": "sst2"}


def _strategy(name: str, sparsity: float) -> dict[str, Any]:
    return {"strategy": name, "sparsity": sparsity} if sparsity else {}


def _masked_lm(settings: Settings, steps: int, seed: int) -> dict[str, Any]:
    return {
        "do_eval": True,
        "max_seq_length": 128,
        "max_eval_samples": settings.mlm_blocks,
        "per_device_train_batch_size": settings.pretraining_batch,
        "per_device_eval_batch_size": 32,
        "learning_rate": settings.pretraining_rate,
        "weight_decay": 0.01,
        "max_steps": steps,
        "save_steps": 200,
        "save_total_limit": 1,
        "logging_steps": 20,
        "seed": seed,
    }


def cells_of(request: Request[Settings], seeds: int, allowed: Mapping[str, Collection[str]]) -> Iterator[Cell]:
    """The cells that pass the filters; those of level 0 come first, since others are compared with them."""
    for table, kinds in TABLES.items():
        pairs = [(level, kind) for kind, levels in kinds.items() for level in levels]
        for level, kind in sorted(pairs, key=lambda pair: pair[0]):
            for seed in range(seeds):
                cell = Cell(table, kind, level, seed, request)
                if passes(cell, allowed):
                    yield cell
