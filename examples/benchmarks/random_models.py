"""Small random text encoders with every task head, in which no mistake can hide.

Freshly initialised models have weights so small, and biases of zero, that cutting the wrong head hardly changes what
they compute. Here every weight, bias and norm is drawn so that each unit matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

# Text encoders with all their heads; `families.py` goes through every other model type.
MODEL_TYPES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
LENGTH = 12
EXAMPLES = 6
CLASSES = 3
CHOICES = 2
_IGNORED = -100

# The families name their sizes differently; each takes those that it has.
_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "embedding_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_dim": 40,
    "max_position_embeddings": 2 * LENGTH,
    "type_vocab_size": 2,
}

_HEADS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "SequenceClassification": [
        ("", {"num_labels": CLASSES}),
        ("several labels", {"num_labels": CLASSES, "problem_type": "multi_label_classification"}),
        ("regression", {"num_labels": 1}),
    ],
    "TokenClassification": [("", {"num_labels": CLASSES})],
    "QuestionAnswering": [("", {})],
    "MultipleChoice": [("", {})],
    "MaskedLM": [("", {})],
    "CausalLM": [("", {"is_decoder": True})],
}


@dataclass(frozen=True)
class Case:
    """A family with a task head."""

    model_type: str
    head: str
    variant: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The task head with its variant."""
        return f"{self.head} ({self.variant})" if self.variant else self.head

    @property
    def auto_class(self) -> Any:
        """The Auto class of the task head."""
        return getattr(transformers, f"AutoModelFor{self.head}")


def every_case() -> Iterator[Case]:
    """Every model type with every task head that it has."""
    for model_type in MODEL_TYPES:
        for head, variants in _HEADS.items():
            for variant, settings in variants:
                case = Case(model_type, head, variant, settings)
                if type(_config(case)) in case.auto_class._model_mapping:
                    yield case


def random_model(case: Case, seed: int = 0) -> PreTrainedModel:
    """A small model in evaluation mode, its weights drawn anew."""
    model = case.auto_class.from_config(_config(case)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                values *= 1.5 / parameter.shape[-1] ** 0.5
            else:
                values = values * 0.3 + (parameter == 1)  # norms stay around one
            parameter.copy_(values)
    return model


def random_batch(case: Case, model: PreTrainedModel, examples: int = EXAMPLES) -> dict[str, torch.Tensor]:
    """Random tokens with padding of different lengths, and the labels that the head's loss needs."""
    generator = torch.Generator().manual_seed(1)
    rows = examples * CHOICES if case.head == "MultipleChoice" else examples
    ids = torch.randint(10, _SIZES["vocab_size"], (rows, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (examples,), generator=generator)
    lengths = lengths.repeat_interleave(rows // examples)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id or 0)
    batch = {"input_ids": ids, "attention_mask": mask}
    if case.head == "MultipleChoice":
        batch = {name: value.view(examples, CHOICES, LENGTH) for name, value in batch.items()}
    return batch | _labels(case, ids, mask, examples, generator)


def _labels(
    case: Case, ids: torch.Tensor, mask: torch.Tensor, examples: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    def draw(limit: int, *shape: int) -> torch.Tensor:
        return torch.randint(limit, shape, generator=generator)

    if case.head == "QuestionAnswering":
        return {"start_positions": draw(LENGTH // 2, examples), "end_positions": draw(LENGTH // 2, examples)}
    if case.head == "MultipleChoice":
        return {"labels": draw(CHOICES, examples)}
    if case.variant == "regression":
        return {"labels": torch.randn(examples, generator=generator)}
    if case.variant:
        return {"labels": draw(2, examples, CLASSES).float()}
    if case.head == "SequenceClassification":
        return {"labels": draw(CLASSES, examples)}
    if case.head == "CausalLM":
        return {"labels": torch.where(mask.bool(), ids, _IGNORED)}
    # Every example has another number of labelled tokens, the first one always.
    labelled = mask.bool() & ((draw(3, *ids.shape) == 0) | (torch.arange(LENGTH) == 0))
    values = ids if case.head == "MaskedLM" else draw(CLASSES, *ids.shape)
    return {"labels": torch.where(labelled, values, _IGNORED)}


def _config(case: Case) -> Any:
    default = AutoConfig.for_model(case.model_type)
    sizes = {name: value for name, value in _SIZES.items() if hasattr(default, name)}
    return AutoConfig.for_model(case.model_type, **sizes, **case.settings)
