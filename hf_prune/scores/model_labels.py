"""Gate gradients without labels in the data: the labels are the model's own.

The Fisher information is an expectation over labels drawn from the model's predictions (the empirical one of Kwon et
al. 2022, Eq. 5, puts the data's labels in their place). For one prediction per example it is computed in closed form;
elsewhere (language models, token classification, question answering) one label per prediction is drawn.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..calibration import Batch, CalibrationData, example_count, predicted_tokens, without_labels
from ..errors import PruningError
from ..offloading import device_of
from ..rows import IGNORED
from .gradients import (
    check_finite,
    evaluating,
    example_gates,
    frozen,
    iterate_gradients,
    some_examples,
    weighted_gradients,
)
from .recomputing import gated

Labels = Literal["data", "model"]
Prediction = Literal["classes", "labels", "numbers"]

# Backward passes for each batch at most; where the exact expectation takes more, one random combination of them all.
EXACT_PASSES = 3
_ADVICE = "Use a model with its task head and data with labels (labels='data'), or importance='magnitude'."

logger = logging.getLogger(__name__)


def whose_labels(model: PreTrainedModel, data: CalibrationData) -> Labels:
    """Those in the calibration data if it has any, else the model's own, with a warning.

    Labels go by many names, and some losses need none: where no column is named like one, a loss tells.
    """
    first = data.first()
    if any(first[name] is not None for name in first.keys() - without_labels(first).keys()):
        return "data"
    with evaluating(model), torch.no_grad():
        output = model(**{**some_examples(first, 0, 2), "return_dict": True})
    if getattr(output, "loss", None) is not None:
        return "data"
    logger.warning(
        "The calibration data has no labels (its batches have %s): the model's own predictions stand in for them.",
        ", ".join(first),
    )
    return "model"


def label_direction(
    logits: torch.Tensor, coefficients: torch.Tensor, prediction: Prediction = "classes"
) -> torch.Tensor:
    """B · coefficients, with B Bᵀ = E[s sᵀ] over the model's own labels, where s = ∂ log p(label) / ∂logits.

    For classes E[s sᵀ] = diag(p) − p pᵀ, whose rank is one less than there are classes. B is its factor that decides
    class by class: column j compares class j with those behind it.

    Args:
        logits: `[examples, outputs]`.
        coefficients: `[examples, outputs]`, or `[examples, outputs − 1]` for classes.
        prediction: what the outputs stand for: one of several "classes" (softmax), independent "labels" (sigmoid), or
            "numbers" (a normal distribution of variance 1 around each).

    Returns:
        `[examples, outputs]`.
    """
    if prediction == "numbers":
        return coefficients.expand_as(logits)
    if prediction == "labels":
        return (logits.sigmoid() * (-logits).sigmoid()).sqrt() * coefficients
    chances = logits.softmax(-1)
    behind = chances.flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(chances.dtype).tiny)
    weighted = coefficients * (chances[:, :-1] * behind[:, 1:] / behind[:, :-1]).sqrt()
    before = functional.pad((weighted / behind[:, 1:]).cumsum(-1), (1, 0))
    return functional.pad(weighted, (0, 1)) - chances * before


def iterate_model_gradients(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    batches: Iterable[Batch],
    watch: AbstractContextManager[object] | None = None,
    number: Callable[[int], int] = int,
    first: int = 0,
) -> Generator[list[torch.Tensor]]:
    """As `iterate_gradients`, with the model's own labels; what labels there are in the batches is not used.

    Args:
        model, anatomy, batches, watch: as for `iterate_gradients`.
        number: of a batch, from its place in `batches`: the seed of what is drawn for it. Processes that share the
            data out need `CalibrationData.batch_number`, or they draw alike for different batches.
        first: the place of the first batch.

    Yields:
        One `[examples, units]` tensor per block, for each batch as often as it has classes less one (outputs, for
        labels and numbers): added up, their squares and their Gram matrices are the expected ones. Above
        `EXACT_PASSES` there is one, which has them as its expectation.

    Raises:
        PruningError: a model whose outputs are no predictions of a known kind, or examples that depend on each other.
    """
    numbered = ((number(index), batch) for index, batch in enumerate(batches, first))
    begin = next(numbered, None)
    if begin is None:
        return
    everything = itertools.chain([begin], numbered)
    logits = _predictions(model, some_examples(begin[1], 0, 2)).get("logits")
    if logits is not None and logits.dim() == 2:
        yield from _expected_gradients(model, anatomy, everything, watch)
    else:
        labelled = (with_drawn_labels(model, batch, seed) for seed, batch in everything)
        yield from iterate_gradients(model, anatomy, labelled, watch, first)


def _expected_gradients(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    batches: Iterable[tuple[int, Batch]],
    watch: AbstractContextManager[object] | None,
) -> Iterator[list[torch.Tensor]]:
    checked = False
    with frozen(model):
        for index, batch in batches:
            if not checked and example_count(batch) > 1:
                _check_independence(model, anatomy, some_examples(batch, 0, 2))
                checked = True
            with watch or nullcontext():
                gates, logits = _gated_logits(model, anatomy, batch)
            if not torch.isfinite(logits).all():
                raise PruningError(
                    f"The outputs for calibration batch {index} are not finite. Look for overflow in half precision or"
                    " NaN in the inputs."
                )
            values = logits.detach().double()
            prediction = kind_of_prediction(model, batch.get("labels"), logits.shape[1])
            for coefficients in _coefficients(values, prediction, seed=index):
                direction = label_direction(values, coefficients, prediction).to(logits.dtype)
                gradients = weighted_gradients([logits], gates, [direction])
                check_finite(gradients, index)
                yield gradients


def _coefficients(logits: torch.Tensor, prediction: Prediction, seed: int) -> Iterable[torch.Tensor]:
    """Of the columns of the labels' factor: one column at a time, or random signs where there are many."""
    examples, outputs = logits.shape
    columns = outputs - 1 if prediction == "classes" else outputs
    if columns <= EXACT_PASSES:
        return torch.eye(columns, dtype=logits.dtype, device=logits.device)[:, None].expand(-1, examples, -1)
    generator = torch.Generator(logits.device).manual_seed(seed)
    signs = torch.randint(2, (examples, columns), generator=generator, device=logits.device)
    return [2.0 * signs.to(logits.dtype) - 1.0]


def with_drawn_labels(model: PreTrainedModel, batch: Batch, seed: int) -> Batch:
    """A batch with labels that are drawn from the model's predictions, one for each prediction.

    Args:
        model: a model that predicts a class for each example or token, or the start and the end of an answer.
        batch: as for the model; where it has labels of tokens, only these are replaced.
        seed: of the draw, on the model's device.

    Raises:
        PruningError: outputs of another kind.
    """
    generator = torch.Generator(device_of(model)).manual_seed(seed)
    predictions = _predictions(model, batch)
    inputs = without_labels(batch)
    if "logits" in predictions:
        drawn = _drawn(predictions["logits"], generator)
        return {**inputs, "labels": _as_labels(model, batch, drawn)}
    if {"start_logits", "end_logits"} <= predictions.keys():
        ends = {f"{name}_positions": _drawn(predictions[f"{name}_logits"], generator) for name in ("start", "end")}
        return {**inputs, **ends}
    raise PruningError(
        f"{type(model).__name__} gives {', '.join(predictions) or 'no logits'}: labels cannot be drawn from it."
        f" {_ADVICE}"
    )


def is_causal(model: PreTrainedModel) -> bool:
    """Whether the model's loss compares each position's prediction with the next label.

    That of some decoders (`BartForCausalLM` and its kin) does not: their labels are shifted already.
    """
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) and _shifts_labels(type(model))  # type: ignore[arg-type]


@cache
def _shifts_labels(model_class: type[PreTrainedModel]) -> bool:
    """Whether a language model's code takes the loss that shifts labels, or shifts them itself."""
    forwards = [vars(parent)["forward"] for parent in model_class.__mro__ if "forward" in vars(parent)]
    try:
        sources = [inspect.getsource(forward) for forward in forwards[:-1]]  # the last is torch's own
    except (OSError, TypeError):  # made in a session without files
        return True
    return any(word in source for source in sources for word in ("loss_function", "shift_labels"))


def _predictions(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    if type(model).__name__.endswith("ForPreTraining"):
        raise PruningError(
            f"The predictions of {type(model).__name__} are of several kinds, or about tokens that were replaced:"
            f" labels cannot be drawn from them. {_ADVICE}"
        )
    with evaluating(model), torch.no_grad():
        output = model(**{**without_labels(batch), "return_dict": True})
    return {
        name: value for name, value in output.items() if name.endswith("logits") and isinstance(value, torch.Tensor)
    }


def _gated_logits(
    model: PreTrainedModel, anatomy: ModelAnatomy, batch: Batch
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """A prediction for each example, and the per-example gates that it depends on."""
    examples, gates = example_count(batch), example_gates(model, anatomy.blocks, batch)
    with torch.enable_grad(), gated(model, anatomy, gates):
        output = model(**{**without_labels(batch), "return_dict": True})
    if len(output.logits) != examples:
        raise PruningError(
            f"{type(model).__name__} makes {len(output.logits)} predictions for {examples} examples. {_ADVICE}"
        )
    return gates, output.logits


def _check_independence(model: PreTrainedModel, anatomy: ModelAnatomy, pair: Batch) -> None:
    gates, logits = _gated_logits(model, anatomy, pair)
    gradients = weighted_gradients([logits[0].sum()], gates, keep_graph=False)
    check_finite(gradients, 0)
    if any(gradient[1:].any() for gradient in gradients):
        raise PruningError(
            f"What {type(model).__name__} predicts for an example depends on the others of its batch, so per-example"
            " gradients do not exist. Use a calibration batch size of 1 or importance='magnitude'."
        )


def kind_of_prediction(model: PreTrainedModel, labels: Any, outputs: int) -> Prediction:
    """What a model's outputs for an example are, as its own loss functions understand them."""
    kind = getattr(model.config, "problem_type", None)
    several = isinstance(labels, torch.Tensor) and labels.is_floating_point() and labels.dim() == 2
    if kind == "regression" or (kind is None and outputs == 1):
        return "numbers"
    return "labels" if kind == "multi_label_classification" or (kind is None and several) else "classes"


def _drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A class for each row of `[..., classes]`, drawn by adding Gumbel noise."""
    noise = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(min=1e-30)
    return (logits.float() - noise.log_().neg_().log_()).argmax(-1)


def _as_labels(model: PreTrainedModel, batch: Batch, drawn: torch.Tensor) -> torch.Tensor:
    """Drawn classes where the model's own loss expects them."""
    if drawn.dim() == 1:
        return drawn
    if is_causal(model):
        drawn = functional.pad(drawn, (1, 0))[:, :-1]
    counted = _label_positions(model, batch)
    if counted is None or counted.shape != drawn.shape:
        raise PruningError(
            f"{type(model).__name__} makes predictions of shape {tuple(drawn.shape)}, which do not belong to the tokens"
            f" of the batch. {_ADVICE}"
        )
    return drawn.masked_fill(~counted.to(drawn.device), IGNORED)


def _label_positions(model: PreTrainedModel, batch: Batch) -> torch.Tensor | None:
    """The positions that have labels in the batch, or without any in there those that are not padding."""
    own = batch.get("labels")
    if isinstance(own, torch.Tensor):
        return own != IGNORED
    return predicted_tokens(model, batch)
