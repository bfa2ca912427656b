"""Exactness of the scores: gradients per example from one backward pass equal those of one example at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from random_models import CHOICES, Case, random_batch, random_model
from transformers import PreTrainedModel

from hf_prune import describe_model
from hf_prune.anatomy import ModelAnatomy
from hf_prune.calibration import Batch
from hf_prune.gates import UnitGates
from hf_prune.scores import fisher_gradients

TOLERANCE = 1e-5


@dataclass(frozen=True)
class ScoreCheck:
    """The largest difference of any gradient, beside the largest gradient."""

    case: Case
    difference: float
    largest: float

    @property
    def holds(self) -> bool:
        """Whether the gradients agree, relative to the largest where that exceeds one."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def check_scores(case: Case) -> ScoreCheck:
    """Compares the library's gradients with plain differentiation of the model's own loss on single examples."""
    model = random_model(case)
    anatomy, batch = describe_model(model), random_batch(case, model)
    together = fisher_gradients(model, [batch], anatomy)
    joined = torch.cat([*together["heads"], *together["filters"]], dim=1)
    alone = torch.stack([_gradient(model, anatomy, example) for example in _examples(case, batch)])
    return ScoreCheck(case, (joined - alone).abs().max().item(), alone.abs().max().item())


def _gradient(model: PreTrainedModel, anatomy: ModelAnatomy, example: Batch) -> torch.Tensor:
    """All gates' gradients for one example, heads first."""
    blocks = (*anatomy.attentions, *anatomy.feed_forwards)
    gates = [torch.ones(block.units, requires_grad=True) for block in blocks]
    with UnitGates(model, blocks, gates):
        loss = model(**example).loss
    return torch.cat(torch.autograd.grad(loss, gates))


def _examples(case: Case, batch: Batch) -> list[Batch]:
    """The batch's examples one by one, without their padding where that does not change the loss."""
    mask = batch["attention_mask"]
    if case.head == "QuestionAnswering":
        # An answer may start or end at a padded position, too, as far as these models' losses are concerned.
        mask = torch.ones_like(mask)
    if case.head == "MultipleChoice":
        assert mask.shape[1] == CHOICES
        mask = mask[:, 0]
    examples = []
    for index, valid in enumerate(mask.sum(1).tolist()):
        rows = {name: value[index : index + 1] for name, value in batch.items()}
        padded = {name for name, value in rows.items() if value.dim() > 1 and value.shape[-1] == mask.shape[1]}
        examples.append({name: value[..., :valid] if name in padded else value for name, value in rows.items()})
    return examples
