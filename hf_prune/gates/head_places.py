"""Where models have the head that label words stand in for, and what lies between it and the hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..anatomy import UndoLog
from ..errors import UnsupportedModelError
from .label_word_head import BothSigns, FirstToken, HeadForm, LabelWordHead


@dataclass(frozen=True)
class HeadPlace:
    """How a class of models gets from hidden states to logits.

    Attributes:
        path: of the head.
        task: "classification" or "answers".
        reads: what the head is given, see `LabelWordHead`.
        bypassed: what takes the place of other modules on the way, by their paths.
        token: where the model takes the hidden state of one token from: its "first" one, what its pooler has made of
            that ("pooled"), or in a way of its own after the head (None).
    """

    path: str
    task: str = "classification"
    reads: str = "hidden"
    bypassed: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    token: str | None = None

    def modules(self, head: LabelWordHead) -> dict[str, nn.Module]:
        """The head, and new modules for the others, by their paths."""
        return {path: kind() for path, kind in self.bypassed.items()} | {self.path: head}


_POOLED = HeadPlace("classifier", bypassed={"dropout": nn.Identity}, token="pooled")
_OWN_HEAD = HeadPlace("classifier", reads="first token", token="first")
_OUTER_POOLER = HeadPlace("classifier", bypassed={"pooler": FirstToken, "dropout": nn.Identity}, token="first")
_RELU = HeadPlace(
    "classifier", reads="halves", bypassed={"pre_classifier": BothSigns, "dropout": nn.Identity}, token="first"
)
_CLASSIFIERS: dict[str, HeadPlace] = {
    **dict.fromkeys(("bert", "albert", "ernie", "megatron-bert"), _POOLED),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "electra", "mpnet"), _OWN_HEAD),
    **dict.fromkeys(("deberta", "deberta-v2"), _OUTER_POOLER),
    "distilbert": _RELU,
}


def find_head_place(model: nn.Module) -> HeadPlace | None:
    """Where label words can take the place of a model's head; None where that is not known."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        return None
    if name.endswith("ForQuestionAnswering"):
        return _answers(model)
    if not name.endswith("ForSequenceClassification"):
        return None
    score = model._modules.get("score")
    if _is_head(model, score) and getattr(score, "bias", None) is None:
        return HeadPlace("score")
    place = _CLASSIFIERS.get(model.config.model_type)
    return place if place is not None and {place.path, *place.bypassed} <= set(model._modules) else None


def head_place(model: nn.Module) -> HeadPlace:
    """As `find_head_place`.

    Raises:
        UnsupportedModelError: it is not known.
    """
    place = find_head_place(model)
    if place is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no head that label words are known to stand in for. They are for"
            f" …ForSequenceClassification of {', '.join(_CLASSIFIERS)} and of decoders with a linear `score` layer, and"
            " for …ForQuestionAnswering with a linear `qa_outputs` layer. Leave label_words out to train the head."
        )
    return place


def _answers(model: PreTrainedModel) -> HeadPlace | None:
    """A layer that gives every token a score for being the start and one for being the end."""
    outputs = model._modules.get("qa_outputs")
    if not _is_head(model, outputs) or model.config.num_labels != 2:
        return None
    dropout = {"dropout": nn.Identity} if isinstance(model._modules.get("dropout"), nn.Dropout) else {}
    return HeadPlace("qa_outputs", "answers", bypassed=dropout)


def _is_head(model: PreTrainedModel, module: nn.Module | None) -> bool:
    """A linear layer on hidden states, the label words in its place, or what PEFT has wrapped around one of them."""
    inner = getattr(module, "original_module", module)
    if isinstance(inner, nn.Linear):
        return inner.in_features == model.config.get_text_config().hidden_size
    return isinstance(inner, LabelWordHead)


class TokenChoice:
    """A hook on the base model: it shows the head the hidden state of the token that label words are scored at.

    That is the token that the form names, where a text has it, and else the first one; not what a pooler makes of it.
    """

    def __init__(self, place: HeadPlace, form: HeadForm | None) -> None:
        self._pooled, self._form = place.token == "pooled", form
        self._handle: Any = None

    @property
    def form(self) -> HeadForm | None:
        """The head that is in force; None for the model's own."""
        return self._form

    def attach(self, base: nn.Module) -> None:
        """Begins."""
        self._handle = base.register_forward_hook(self, with_kwargs=True)

    def remove(self) -> None:
        """Ends; without effect where it has not begun."""
        if self._handle is not None:
            self._handle.remove()

    def __call__(self, base: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        """The base model's output, changed where that is needed."""
        form = self.form
        if form is None or (form.mask_token is None and not self._pooled):
            return None
        hidden = output[0]
        ids = named.get("input_ids", inputs[0] if inputs else None)
        places = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        if form.mask_token is not None and ids is not None:
            places = (ids == form.mask_token).int().argmax(-1)  # the first of them, and 0 where there is none
        token = hidden[torch.arange(len(hidden), device=hidden.device), places]
        if self._pooled:
            return _with(output, 1, "pooler_output", token)
        return _with(output, 0, "last_hidden_state", torch.cat([token[:, None], hidden[:, 1:]], dim=1))


def _with(output: Any, index: int, name: str, value: torch.Tensor) -> Any:
    """A model's output, named or a tuple, with one entry exchanged."""
    if isinstance(output, tuple):
        return (*output[:index], value, *output[index + 1 :])
    output[name] = value
    return output


class PlacedHead:
    """Label words in place of a model's own head, until `remove`.

    Args:
        model: whose head it is.
        place: where.
        form, tensors: see `LabelWordHead`; they are stored with the model.
        log: what has been changed so far, to be undone with it.
    """

    def __init__(
        self, model: PreTrainedModel, place: HeadPlace, form: HeadForm, tensors: Mapping[str, Any], log: UndoLog
    ) -> None:
        head = LabelWordHead(form, tensors, place.reads, stands_for=_names(model, place), stored=True)
        self.form, self._log, self._choice = form, log, TokenChoice(place, form)
        for path, module in place.modules(head).items():
            log.set(model, path, module.train(model.training))
        if place.token is not None:
            self._choice.attach(model.base_model)
        head.placed, self._head = self, head

    def settle(self) -> None:
        """Lets the head stay for good, and the model's own go."""
        self._head.placed = None

    def remove(self) -> None:
        """Puts the model's own head back."""
        self._choice.remove()
        self._log.roll_back()
        self._head.placed = None


def _names(model: PreTrainedModel, place: HeadPlace) -> tuple[str, ...]:
    """The names of the parameters of the model's own head."""
    head = model.get_submodule(place.path)
    return head.stands_for if isinstance(head, LabelWordHead) else tuple(head.state_dict())
