"""Learning from a teacher: the student's logits are drawn to those of the dense model (Hinton et al. 2015).

The teacher's part is put into the loss that the model itself returns, by a forward hook. So whatever trains the model
(a Trainer, a subclass, a loop of one's own) scales and accumulates it as it does the loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..calibration import decoder_inputs
from ..errors import PruningError
from ..scores import frozen
from ..scores.model_labels import Prediction
from .own_loss import counted_outputs, kind_of_outputs, scale_of_loss

# Heads whose outputs have one distribution for each of these names.
_LOGITS = ("logits", "start_logits", "end_logits", "prediction_logits")


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    mask: torch.Tensor | None = None,
    prediction: Prediction = "classes",
) -> torch.Tensor:
    """How far the student is from the teacher, summed over all rows that count.

    Classes: T² · KL(softmax(teacher / T) ‖ softmax(student / T)). Labels, which are independent: the mean over them of
    the same for each label's two probabilities, by the logistic function. Numbers: the mean of the squared differences,
    without a temperature.

    Args:
        student, teacher: `[..., outputs]`.
        temperature: T.
        mask: bool `[...]`, which rows count; None for all.
        prediction: what the outputs stand for.
    """
    student, teacher = student.float(), teacher.float()
    if prediction == "numbers":
        rows = (student - teacher).square().mean(-1)
    else:
        found, wanted = (_log_chances(logits / temperature, prediction) for logits in (student, teacher))
        divergence = F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
        rows = temperature**2 * (divergence if prediction == "classes" else divergence.mean(-1))
    return (rows if mask is None else rows[mask]).sum()


def _log_chances(logits: torch.Tensor, prediction: Prediction) -> torch.Tensor:
    """`[..., classes]`; for labels `[..., labels, 2]`, of each that it is there and that it is not."""
    if prediction == "classes":
        return F.log_softmax(logits, dim=-1)
    return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), dim=-1)


def check_distillation(temperature: float, weight: float) -> None:
    """Raises a PruningError where a temperature is not above 0, or a teacher's share of the loss not in (0, 1]."""
    if not temperature > 0:
        raise PruningError(f"temperature={temperature} must be above 0.")
    if not 0 < weight <= 1:
        raise PruningError(f"The teacher's weight={weight} must lie in (0, 1]: it is its share of the loss.")


class Distillation:
    """A teacher for a model that is trained, until `remove()` is called.

    While the model is in training mode, its loss becomes (1 − weight) · loss + weight · teacher's part: the mean over
    examples, or in language models and token classification over the labelled tokens, of `distillation_loss`; of
    question answering the mean of start and end. Data without labels will do where that is said, and the weight is 1;
    every token that no attention mask leaves out counts then.

    Args:
        model: the student, a Transformers model or a PEFT model around one.
        teacher: a model of the same task with the same classes; until `remove()` it is in evaluation mode, and frozen.
        temperature: softens both distributions.
        weight: the teacher's share of the loss, above 0 and at most 1.
        labelled: whether a model that returns no loss is an error: its trainer may have kept the labels to itself, for
            a loss in which the teacher has no part.

    Raises:
        PruningError: a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: PreTrainedModel,
        temperature: float = 2.0,
        weight: float = 0.5,
        *,
        labelled: bool = True,
    ) -> None:
        check_distillation(temperature, weight)
        self._teacher, self._temperature, self._weight = teacher, temperature, weight
        self._needs_loss = labelled or weight < 1
        self._still = ExitStack()
        self._still.enter_context(frozen(teacher))
        self._accepted = set(inspect.signature(teacher.forward).parameters)
        self._names = list(inspect.signature(model.forward).parameters)
        self._handle: RemovableHandle = model.register_forward_hook(self._teach, with_kwargs=True)

    def remove(self) -> None:
        """Lets the model alone again, and the teacher, which has its own modes back."""
        self._handle.remove()
        self._still.close()

    def _teach(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if not module.training or not torch.is_grad_enabled():
            return None
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if not isinstance(output, ModelOutput) or (output.get("loss") is None and self._needs_loss):
            raise PruningError(
                f"{type(module).__name__} returned no loss of its own to put the teacher's part into: distillation"
                " works with the model's loss, not with label smoothing, compute_loss_func or return_dict=False. Data"
                " without labels is for recover(teacher_weight=1)."
            )
        part = scale_of_loss(self._teacher, inputs, output) * self._part(inputs, output)
        output["loss"] = part if self._weight == 1 else (1 - self._weight) * output["loss"] + self._weight * part
        return output

    def _part(self, inputs: Mapping[str, Any], output: ModelOutput) -> torch.Tensor:
        """The teacher's part of the loss, a mean over the rows of this call that count."""
        known = {name: value for name, value in inputs.items() if name in self._accepted and not _is_label(name)}
        known |= decoder_inputs(self._teacher, dict(inputs), self._accepted)
        with torch.no_grad():
            taught = self._teacher(**known)
        names = [name for name in _LOGITS if isinstance(output.get(name), torch.Tensor)]
        parts = []
        for name in names:
            student, teacher = output[name], taught.get(name)
            if teacher is None or teacher.shape != student.shape:
                shape = None if teacher is None else tuple(teacher.shape)
                raise PruningError(
                    f"The teacher's {name} have the shape {shape}, the student's {tuple(student.shape)}: both must have"
                    " the same task and the same classes."
                )
            prediction = kind_of_outputs(self._teacher, name, student, inputs.get("labels"))
            if prediction == "replaced":
                student, teacher, prediction = student[..., None], teacher[..., None], "labels"
            mask = counted_outputs(self._teacher, student, inputs)
            total = distillation_loss(student, teacher.to(student.device), self._temperature, mask, prediction)
            parts.append(total / (student[..., 0].numel() if mask is None else mask.sum().clamp(min=1)))
        if not parts:
            raise PruningError(f"{type(self._teacher).__name__} gives no logits that a student could learn from.")
        return torch.stack(parts).mean()


def _is_label(name: str) -> bool:
    return "label" in name or name in ("start_positions", "end_positions", "num_items_in_batch")
