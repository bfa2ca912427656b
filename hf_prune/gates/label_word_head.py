"""A task head with nothing to learn: a label's score is that of a word (Jiang et al. 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from ..errors import PruningError

TASKS = ("classification", "answers")


@dataclass(frozen=True)
class HeadForm:
    """What a head of label words is, beside its tensors.

    Attributes:
        task: "classification", or "answers": where an answer starts and ends.
        words: one per label, in the order of the logits.
        activation: of the masked language model's transform that comes first; None where there is none.
        norm_eps: of that transform's LayerNorm.
        mask_token: id of the token that is scored where a text has it; elsewhere it is the first one.
    """

    task: str
    words: tuple[str, ...]
    activation: str | None = None
    norm_eps: float = 0.0
    mask_token: int | None = None

    def shapes(self, hidden: int, width: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the head's tensors, by name.

        Args:
            hidden: size of the model's hidden states.
            width: size of its word embeddings.
        """
        labels = len(self.words)
        if self.activation is None:
            return {"word_rows": (labels, hidden)}
        vectors = dict.fromkeys(("dense_bias", "norm_weight", "norm_bias"), (width,))
        return {"dense_weight": (width, hidden), **vectors, "word_rows": (labels, width), "word_bias": (labels,)}

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint's config has it."""
        return asdict(self) | {"words": list(self.words)}

    @classmethod
    def from_dict(cls, data: Any) -> HeadForm:
        """The inverse of `to_dict`, for what a checkpoint claims.

        Raises:
            PruningError: anything in it is not what it has to be.
        """
        names = set(cls.__dataclass_fields__)
        words = data.get("words") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or set(data) != names or not isinstance(words, (list, tuple)):
            raise PruningError(f"Metadata of label words must have {', '.join(sorted(names))}; got {str(data)[:100]}.")
        found = cls(**{**data, "words": tuple(words)})
        eps, token = found.norm_eps, found.mask_token
        valid = {
            "task": found.task in TASKS,
            "words": bool(words) and all(isinstance(word, str) and word for word in words),
            "activation": found.activation is None
            or (isinstance(found.activation, str) and found.activation in ACT2FN),
            "norm_eps": isinstance(eps, (int, float)) and not isinstance(eps, bool) and 0 <= eps < 1,
            "mask_token": token is None or (isinstance(token, int) and not isinstance(token, bool) and token >= 0),
        }
        for name, right in valid.items():
            if not right:
                raise PruningError(f"Metadata of label words: {name} cannot be {str(data[name])[:100]}.")
        return found


def label_word_scores(hidden: torch.Tensor, form: HeadForm, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """h Eᵀ: the scores of the label words' vectors E at hidden states h.

    With an activation h goes through the transform of a masked language model first, dense layer, activation and
    LayerNorm, and the vectors have a bias, as in the authors' code.

    Args:
        hidden: `[..., hidden]`.
        form: what the head is.
        tensors: of the shapes in `HeadForm.shapes`.

    Returns:
        `[..., labels]`.
    """
    if form.activation is not None:
        hidden = ACT2FN[form.activation](F.linear(hidden, tensors["dense_weight"], tensors["dense_bias"]))
        norm = tensors["norm_weight"], tensors["norm_bias"]
        hidden = F.layer_norm(hidden, hidden.shape[-1:], *norm, form.norm_eps)
    return F.linear(hidden, tensors["word_rows"], tensors.get("word_bias"))


def _first_token(hidden: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _without_signs(halves: torch.Tensor) -> torch.Tensor:
    positive, negative = halves.chunk(2, dim=-1)
    return positive - negative


def _as_it_is(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


READS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "hidden": _as_it_is,
    "first token": _first_token,
    "halves": _without_signs,
}


class FirstToken(nn.Module):
    """In place of a pooler: the first token's hidden state, `[batch, tokens, hidden]` to `[batch, hidden]`."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model gives its head."""
        return _first_token(hidden)


class BothSigns(nn.Module):
    """x and -x side by side, of which a ReLU leaves what x is made up from: `[..., n]` to `[..., 2 n]`."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What goes into the ReLU."""
        return torch.cat([hidden, -hidden], dim=-1)


class LabelWordHead(nn.Module):
    """A model's head that scores label words; all its tensors are buffers, so it never learns.

    Args:
        form: what it is.
        tensors: of the shapes in `HeadForm.shapes`.
        reads: what the model gives it, one of `READS`: hidden states, those of all tokens where the first is meant, or
            what a ReLU has left of `BothSigns`.
        stands_for: names of the parameters of the head that the model had. Where the head is stored, empty tensors of
            these names are, too, because transformers alone would put random weights there without an error.
        stored: whether the tensors are part of the model's checkpoints.

    Attributes:
        placed: what can take the head off a model again, as long as that is wanted.
    """

    def __init__(
        self,
        form: HeadForm,
        tensors: Mapping[str, torch.Tensor],
        reads: str,
        *,
        stands_for: Iterable[str] = (),
        stored: bool,
    ) -> None:
        super().__init__()
        self.form, self._reads = form, READS[reads]
        self.placed: Any = None
        self.stands_for = tuple(stands_for) if stored else ()
        self._names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=stored)
        for name in self.stands_for:
            _add_empty(self, name, tensors["word_rows"])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The logits, `[..., labels]`."""
        return label_word_scores(self._reads(inputs), self.form, self.tensors())

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the scores are made with, by name."""
        return {name: self.get_buffer(name) for name in self._names}


def _add_empty(module: nn.Module, name: str, like: torch.Tensor) -> None:
    """Adds an empty buffer under a name with dots in it."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_buffer(last, like.new_empty(0))
