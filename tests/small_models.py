"""Small random models of every supported family with every task head, and batches for them.

Their weights, biases and norms are far from a default initialisation: what a unit does must show in the outputs, or a
wrong cut would pass unnoticed. Layers are three, so that one attention and one FFN block can go whole and one of each
can stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_prune import describe_model

HIDDEN, HEADS, FILTERS, LAYERS, VOCABULARY = 32, 4, 40, 3, 61
LENGTHS = (9, 5, 7, 8)
CHOICES = 3
CLASSES = 3

Batch = dict[str, torch.Tensor]

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": FILTERS,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
}
_DISTILBERT_SIZES = {
    "vocab_size": VOCABULARY,
    "dim": HIDDEN,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "hidden_dim": FILTERS,
    "max_position_embeddings": 48,
}
_DECODER = {"is_decoder": True}
_CROSS_ATTENTION = {"is_decoder": True, "add_cross_attention": True}

# Task → (Auto class, the class's name after the family's prefix).
TASKS = {
    "bare": ("AutoModel", "Model"),
    "classification": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "regression": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "multi_label": ("AutoModelForSequenceClassification", "ForSequenceClassification"),
    "tokens": ("AutoModelForTokenClassification", "ForTokenClassification"),
    "answers": ("AutoModelForQuestionAnswering", "ForQuestionAnswering"),
    "choices": ("AutoModelForMultipleChoice", "ForMultipleChoice"),
    "masked": ("AutoModelForMaskedLM", "ForMaskedLM"),
    "causal": ("AutoModelForCausalLM", "ForCausalLM"),
    "cross_attention": ("AutoModelForCausalLM", "ForCausalLM"),
    "next_sentence": ("AutoModelForNextSentencePrediction", "ForNextSentencePrediction"),
    "pretraining": ("AutoModelForPreTraining", "ForPreTraining"),
    "discriminator": ("AutoModelForPreTraining", "ForPreTraining"),
}
_ENCODER_TASKS = ("bare", "classification", "regression", "multi_label", "tokens", "answers", "choices", "masked")
_DECODER_TASKS = (*_ENCODER_TASKS, "causal", "cross_attention")

# model_type → (prefix of its class names, sizes, tasks).
FAMILY_MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "bert": ("Bert", _SIZES, (*_DECODER_TASKS, "next_sentence", "pretraining")),
    "roberta": ("Roberta", _SIZES | {"pad_token_id": 1}, _DECODER_TASKS),
    "xlm-roberta": ("XLMRoberta", _SIZES | {"pad_token_id": 1}, _DECODER_TASKS),
    "camembert": ("Camembert", _SIZES | {"pad_token_id": 1}, _DECODER_TASKS),
    "electra": ("Electra", _SIZES | {"embedding_size": 16}, (*_DECODER_TASKS, "discriminator")),
    "distilbert": ("DistilBert", _DISTILBERT_SIZES, _ENCODER_TASKS),
}


@dataclass(frozen=True)
class Case:
    """One family with one task head."""

    model_type: str
    task: str
    model_class: type[PreTrainedModel]
    settings: dict[str, Any] = field(hash=False)

    @property
    def auto_class(self) -> Any:
        return getattr(transformers, TASKS[self.task][0])

    def config(self, attention: str = "sdpa", **changes: Any) -> PreTrainedConfig:
        return self.model_class.config_class(**self.settings | changes, attn_implementation=attention)

    def model(self, attention: str = "sdpa", seed: int = 0, **changes: Any) -> PreTrainedModel:
        """In evaluation mode, with weights that matter."""
        model = self.model_class(self.config(attention, **changes)).eval()
        scale_weights(model, seed)
        return model

    def batch(self, seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Batch:
        """Padded examples with labels, as the task's forward takes them."""
        return make_batch(self.config(), self.task, seed, lengths)

    def __str__(self) -> str:
        return f"{self.model_type}-{self.task}"


def all_cases() -> Iterator[Case]:
    for model_type, (prefix, sizes, tasks) in FAMILY_MODELS.items():
        for task in tasks:
            name = prefix + TASKS[task][1]
            if name == "BertForCausalLM":
                name = "BertLMHeadModel"
            yield Case(model_type, task, getattr(transformers, name), sizes | _task_settings(task))


def _task_settings(task: str) -> dict[str, Any]:
    if task == "cross_attention":
        return _CROSS_ATTENTION
    if task == "causal":
        return _DECODER
    if task == "regression":
        return {"num_labels": 1}
    return {"num_labels": CLASSES} if task in ("classification", "multi_label", "tokens") else {}


CASES = tuple(all_cases())


def case(model_type: str, task: str) -> Case:
    """One case by name."""
    return next(item for item in CASES if (item.model_type, item.task) == (model_type, task))


def scale_weights(model: nn.Module, seed: int = 0) -> None:
    """Random weights, biases and norms large enough for every head and filter to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # sinusoidal positions are not in checkpoints
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() <= 1:
                is_norm = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
                parameter.copy_(1 + 0.3 * noise if is_norm else 0.3 * noise)
            else:
                parameter.copy_(noise if "embeddings" in name else 2 * noise / parameter.shape[1] ** 0.5)


def make_batch(config: PreTrainedConfig, task: str, seed: int, lengths: tuple[int, ...]) -> Batch:
    generator = torch.Generator().manual_seed(100 + seed)
    examples, length = len(lengths), max(lengths)
    rows = examples * CHOICES if task == "choices" else examples
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).long()
    mask = mask.repeat_interleave(rows // examples, dim=0)
    ids = ids.where(mask.bool(), torch.tensor(config.pad_token_id))
    batch = {"input_ids": ids, "attention_mask": mask}
    if task == "choices":
        batch = {name: value.reshape(examples, CHOICES, length) for name, value in batch.items()}
    if task == "cross_attention":
        batch["encoder_hidden_states"] = torch.randn(examples, 6, HIDDEN, generator=generator)
        batch["encoder_attention_mask"] = torch.tensor([[1] * 6, [1] * 4 + [0] * 2] * examples)[:examples]
    return batch | _labels(task, ids, mask, examples, generator)


def _labels(task: str, ids: torch.Tensor, mask: torch.Tensor, examples: int, generator: torch.Generator) -> Batch:
    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    if task == "bare":
        return {}
    if task in ("classification", "choices", "next_sentence"):
        return {"labels": integers(2 if task == "next_sentence" else CLASSES, examples)}
    if task == "regression":
        return {"labels": torch.randn(examples, generator=generator)}
    if task == "multi_label":
        return {"labels": integers(2, examples, CLASSES).float()}
    if task == "answers":
        # The last answer starts outside the sequence: such terms are ignored.
        start = integers(5, examples).index_fill(0, torch.tensor([examples - 1]), ids.shape[1] + 3)
        return {"start_positions": start, "end_positions": integers(5, examples)}
    if task == "discriminator":
        return {"labels": integers(2, *ids.shape)}
    if task == "tokens":
        return {"labels": integers(CLASSES, *ids.shape).where(mask.bool(), torch.tensor(-100))}
    labels = ids.where(mask.bool(), torch.tensor(-100))
    if task in ("masked", "pretraining"):
        labels = labels.where(torch.arange(ids.shape[1]) % 3 == 1, torch.tensor(-100))
    return {"labels": labels} | ({"next_sentence_label": integers(2, examples)} if task == "pretraining" else {})


def sizes(model: PreTrainedModel) -> list[int]:
    """Units of every block, in the order in which the blocks run."""
    return [block.units for block in describe_model(model).blocks]
