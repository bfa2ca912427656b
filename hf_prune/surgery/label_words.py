"""Label words in a model's config, and building a model that has them in place of a head."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..anatomy import UndoLog
from ..errors import PruningError
from ..gates.head_places import PlacedHead, find_head_place
from ..gates.label_word_head import HeadForm, LabelWordHead
from .metadata import KEY, LABEL_WORDS, pruning_of, pruning_or_new


def write_label_words(config: PreTrainedConfig, form: HeadForm, log: UndoLog) -> None:
    """Says in a config that its model has a head of label words, beside what it says already."""
    log.set(config, KEY, pruning_or_new(config) | {LABEL_WORDS: form.to_dict()})


def has_label_words(config: PreTrainedConfig) -> bool:
    """Whether a config says that its model has a head of label words."""
    data = pruning_of(config)
    return data is not None and LABEL_WORDS in data


def build_label_words(model: PreTrainedModel, data: Any) -> None:
    """Gives a freshly built model the head that its config tells of, with empty tensors for the stored ones.

    A model for another task, or without a head, is not affected.

    Raises:
        PruningError: the config has another number of labels, or the model no such head.
    """
    form = HeadForm.from_dict(data)
    wanted = {"classification": "ForSequenceClassification", "answers": "ForQuestionAnswering"}[form.task]
    if not type(model).__name__.endswith(wanted):
        return
    place = find_head_place(model)
    labels = model.config.num_labels
    if place is None or labels != len(form.words):
        reason = f"has {labels} labels" if place else "has no head that they are known to stand in for"
        raise PruningError(
            f"config.{KEY} tells of the label words {', '.join(form.words)[:100]}, but this {type(model).__name__}"
            f" {reason}. The config was edited after pruning; restore it."
        )
    if isinstance(model.get_submodule(place.path), LabelWordHead):
        return
    table = model.get_input_embeddings().weight
    hidden = model.config.get_text_config().hidden_size
    shapes = form.shapes(hidden, table.shape[1])
    tensors = {name: torch.empty(shape, dtype=table.dtype, device=table.device) for name, shape in shapes.items()}
    PlacedHead(model, place, form, tensors, UndoLog()).settle()
