"""What a masked language model's head is made of, for label words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from ...errors import PruningError, UnsupportedModelError
from ...gates.label_word_head import HeadForm, label_word_scores

_TOLERANCE = 1e-4


def masked_lm_head(name: str, words: Sequence[str], ids: Sequence[int]) -> tuple[HeadForm, dict[str, torch.Tensor]]:
    """The transform of a masked language model and its vectors for some words, proved against the model's own logits.

    Args:
        name: name or folder of the model.
        words: of the labels, in their order.
        ids: of these words.

    Raises:
        PruningError: the checkpoint has no such head.
        UnsupportedModelError: the head is not made of one dense layer, an activation, one LayerNorm and a decoder.
    """
    model = _load(name)
    try:
        tensors, eps = _parts(model, ids)
    except (StopIteration, AttributeError, ValueError) as error:
        raise _not_understood(model) from error
    probe = torch.tensor([[*ids, 0, 1]])
    with torch.no_grad():
        hidden = model.base_model(probe)[0]
        expected = model(probe).logits[..., list(ids)]
        errors = {}
        for activation in dict.fromkeys((_activation(model), "gelu", "relu")):
            form = HeadForm("classification", tuple(words), activation, eps)
            errors[form] = float((label_word_scores(hidden, form, tensors) - expected).abs().max())
    best = min(errors, key=lambda form: errors[form])
    if not errors[best] <= _TOLERANCE * float(expected.abs().max()):
        raise _not_understood(model)
    return best, tensors


def _load(name: str) -> PreTrainedModel:
    try:
        model, found = AutoModelForMaskedLM.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise PruningError(
            f"label_word_head='mlm' needs a masked language model, and {name!r} cannot be read as one: {error} Name one"
            " with label_word_model."
        ) from error
    inside = f"{model.base_model_prefix}."
    missing = sorted(key for key in found["missing_keys"] if not key.startswith(inside))
    if missing:
        raise PruningError(
            f"label_word_head='mlm' needs the head of a masked language model, and the checkpoint {name!r} has none:"
            f" {missing[0]} is missing. Name one that has with label_word_model, or use label_word_head='embeddings'."
        )
    return model.eval()


def _parts(model: PreTrainedModel, ids: Sequence[int]) -> tuple[dict[str, torch.Tensor], float]:
    """The tensors of a `LabelWordHead`, and the LayerNorm's epsilon."""
    table = model.get_input_embeddings().weight
    base = {id(module) for module in model.base_model.modules()}
    head = [module for module in model.modules() if id(module) not in base]
    linear = [module for module in head if isinstance(module, nn.Linear)]
    (dense,) = [module for module in linear if module.out_features != len(table)]
    (norm,) = [module for module in head if isinstance(module, nn.LayerNorm)]
    decoder = next((module.weight for module in linear if module.out_features == len(table)), table)
    bias = next(
        parameter
        for module in head
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 1 and len(parameter) == len(table)
    )
    tensors = {
        "dense_weight": dense.weight,
        "dense_bias": dense.bias,
        "norm_weight": norm.weight,
        "norm_bias": norm.bias,
        "word_rows": decoder[list(ids)],
        "word_bias": bias[list(ids)],
    }
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}, norm.eps


def _activation(model: PreTrainedModel) -> str:
    config = model.config
    return str(getattr(config, "hidden_act", None) or getattr(config, "activation", None) or "gelu")


def _not_understood(model: PreTrainedModel) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The head of {type(model).__name__} is not one dense layer, an activation, a LayerNorm and a decoder."
        " Use label_word_head='embeddings'."
    )
