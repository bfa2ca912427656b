"""Label words in place of a trained head (Jiang et al. 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from ...anatomy import UndoLog
from ...errors import PruningError
from ...gates.head_places import HeadPlace, PlacedHead, head_place
from ...gates.label_word_head import HeadForm, LabelWordHead
from ...surgery.label_words import write_label_words
from ...surgery.own_configs import give_own_configs
from .masked_lm_head import masked_lm_head
from .settings import StaticMaskSettings, read_label_words
from .word_tokens import WordTokens, find_tokens, keys_in_order


@dataclass(frozen=True)
class WordHead:
    """A head that is ready to be put into a model.

    Attributes:
        place: where it goes.
        form, tensors: see `LabelWordHead`.
    """

    place: HeadPlace
    form: HeadForm
    tensors: Mapping[str, torch.Tensor]

    def put_into(self, model: PreTrainedModel) -> PlacedHead:
        """Puts it into a model, whose config says so from now on, and whose checkpoints hold it."""
        log = UndoLog()
        give_own_configs(model, log)
        placed = PlacedHead(model, self.place, self.form, self.tensors, log)
        write_label_words(model.config, self.form, log)
        return placed

    def module(self) -> LabelWordHead:
        """The head for a model whose checkpoints do not hold it."""
        return LabelWordHead(self.form, self.tensors, self.place.reads, stored=False)


def label_word_tokens(model: PreTrainedModel, settings: StaticMaskSettings) -> WordTokens:
    """Looks the label words of some settings up."""
    return find_tokens(model, read_label_words(settings.label_words) or {}, settings.label_word_tokenizer)


def label_word_head(model: PreTrainedModel, settings: StaticMaskSettings, tokens: WordTokens | None = None) -> WordHead:
    """The head that settings ask for; the model is not touched.

    Args:
        model: for which task and with which embeddings.
        settings: with label words.
        tokens: what these are, where that is known already.

    Raises:
        UnsupportedModelError: it is not known how the model's class gets to its logits.
        PruningError: a word is not one token, a label has no word, or what scores words does not fit the model.
    """
    place, words = head_place(model), read_label_words(settings.label_words) or {}
    keys = keys_in_order(model, place.task, words)
    tokens = tokens or label_word_tokens(model, settings)
    ids = [tokens.ids[key] for key in keys]
    table = model.get_input_embeddings().weight
    _check_ids({words[key]: number for key, number in zip(keys, ids, strict=True)}, len(keys), len(table))
    texts = tuple(words[key] for key in keys)
    if settings.label_word_head == "mlm":
        form, tensors = masked_lm_head(settings.label_word_model or model.name_or_path, texts, ids)
        by_token = place.task == "classification"
        form = replace(form, task=place.task, mask_token=tokens.mask_token if by_token else None)
    else:
        form, tensors = HeadForm(place.task, texts), {"word_rows": table[ids].detach().clone()}
    _check_shapes(model, form, tensors)
    return WordHead(place, form, {name: tensor.to(table) for name, tensor in tensors.items()})


def put_label_words(model: PreTrainedModel, settings: StaticMaskSettings) -> PlacedHead | None:
    """Puts the head into a model that settings ask for, if they do; one that a training has put there already stays."""
    words = read_label_words(settings.label_words)
    if words is None:
        return None
    place = head_place(model)
    there = getattr(model.get_submodule(place.path), "placed", None)
    if there is not None:
        texts = tuple(words[key] for key in keys_in_order(model, place.task, words))
        if (there.form.words, there.form.activation is not None) == (texts, settings.label_word_head == "mlm"):
            placed: PlacedHead = there
            return placed
        there.remove()
    return label_word_head(model, settings).put_into(model)


def _check_ids(ids: Mapping[str, int], labels: int, vocabulary: int) -> None:
    if len(set(ids.values())) < labels:
        raise PruningError(f"label_words give two labels the same word, out of {', '.join(map(repr, ids))}.")
    for word, number in ids.items():
        if not 0 <= number < vocabulary:
            raise PruningError(
                f"The label word {word!r} is token {number}, but the model has {vocabulary} word embeddings. The"
                " tokenizer belongs to another model; name the right one with label_word_tokenizer."
            )


def _check_shapes(model: PreTrainedModel, form: HeadForm, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises a PruningError where a tensor has not the shape that the model's hidden states need."""
    hidden, width = model.config.get_text_config().hidden_size, model.get_input_embeddings().weight.shape[1]
    for name, shape in form.shapes(hidden, width).items():
        if tuple(tensors[name].shape) == shape:
            continue
        if form.activation is None:
            reason = f"word embeddings have {width} values and hidden states {hidden}: use label_word_head='mlm'"
        else:
            found = f"{name} of the masked language model has the shape {list(tensors[name].shape)}, not {list(shape)}"
            reason = f"{found}: name the model of this size with label_word_model"
        raise PruningError(f"Label words cannot be scored in this {type(model).__name__}: {reason}.")
