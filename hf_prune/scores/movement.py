"""Movement scores: every weight's score falls where training moves the weight towards zero (Sanh et al. 2020)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..anatomy import WeightMatrix
from ..errors import PruningError
from ..gates import MatrixMasks
from ..processes import add_up, average, process_count
from ..shards import collected, rows_of, shards_of
from .moments import moments_of, put_moments, stored_moments
from .weights import WeightScores

logger = logging.getLogger(__name__)


class MovementScores(WeightScores):
    """Scores S that learn beside the weights, by the straight-through gradient ∂L/∂S = ∂L/∂W' ∘ W (W' = mask ∘ W).

    They have an optimizer of their own, AdamW without decay, so that no optimizer, scheduler or checkpoint of the
    training loop has to know of them. They are kept in float32 whatever the weights are.

    Args:
        matrices: whose weights are scored, all from 0.
        learning_rate: of the scores.
        max_norm: their gradients are clipped to this norm together; None for no clipping.
        frozen: the weights do not learn and their own gradients are not kept.
        scores: tensors to learn in, one per matrix in float32, instead of new ones.

    Attributes:
        scaler: the gradient scaler of mixed precision in float16, or None.
        overflowed: whether the last step left scores as they were, because the scaler's factor is too large for them.
    """

    def __init__(
        self,
        matrices: Sequence[WeightMatrix],
        learning_rate: float,
        max_norm: float | None = 1.0,
        *,
        frozen: bool = False,
        scores: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self._matrices = tuple(matrices)
        self._frozen = frozen
        self._scales: dict[int, float] = {}
        self._scores = (
            [torch.zeros_like(item.values, dtype=torch.float32) for item in matrices]
            if scores is None
            else list(scores)
        )
        self._shards = shards_of((item.name, item.parameter) for item in matrices)
        self._rate, self._max_norm = learning_rate, max_norm
        self._optimizer = torch.optim.AdamW(self._scores, lr=learning_rate, weight_decay=0.0)
        self._masks: MatrixMasks | None = None
        self.scaler: Any = None
        self.overflowed = False

    def attach(self, masks: MatrixMasks) -> None:
        """Names the masks whose gradients are watched."""
        self._masks = masks

    def watch(self, index: int, gradient: torch.Tensor) -> None:
        """Adds ∂L/∂W' ∘ W to a score's gradient."""
        assert self._masks is not None
        score = self._scores[index]
        product = gradient.detach().float() * self._masks.raw(index).float()
        if self._begins_step(index) or score.grad is None:
            score.grad = product
        elif self._shards.several and not self._frozen:  # of weights that stay it has been added up already
            score.grad = torch.where(self._masks.masks[index], product, score.grad + product)
        else:
            score.grad += product

    def _begins_step(self, index: int) -> bool:
        """Whether this is a step's first gradient, also where the step before was given up for an overflow."""
        if not self._frozen and not self._shards.several:
            return self._matrices[index].parameter.grad is None
        if self.scaler is None:
            return False
        scale, before = self.scaler.get_scale(), self._scales.get(index)
        self._scales[index] = scale
        return scale != before  # an overflow lowers it; it grows only after a step that was made

    def scores(self, masks: MatrixMasks) -> list[torch.Tensor]:
        """The learnt scores."""
        return self._scores

    def add_movement(self) -> None:
        """One plain gradient step on the scores alone: S ← S − ∂L/∂W ∘ W, where no weight is trained."""
        for score in self._scores:
            if score.grad is not None:
                score.sub_(score.grad)
                score.grad = None

    def agree(self) -> None:
        """Makes the scores those of all the data, after each process has seen its share of it."""
        add_up(self._scores)

    @torch.no_grad()
    def learn(self, masks: MatrixMasks, rate: float, penalty: float) -> None:
        """One step of the scores' optimizer."""
        self._complete_gradients()
        if penalty:
            self._add_penalty(penalty)
        if self.scaler is not None or self._max_norm is not None:
            norm = self._norm()
            self.overflowed = self.scaler is not None and not math.isfinite(norm)
            if self.overflowed:
                logger.warning("Gradients of scores overflowed in float16: this step leaves scores as they are.")
                self._optimizer.zero_grad()
                return
            if self._max_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self._scores, self._max_norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * rate
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _norm(self) -> torch.Tensor:
        """Of the gradients of all scores together, on all processes."""
        norm = torch.nn.utils.get_total_norm([score.grad for score in self._scores if score.grad is not None])
        return self._shards.add_up(norm.square()).sqrt() if self._shards.several else norm

    def _complete_gradients(self) -> None:
        """Takes the gradient scaler's factor out, and the mean over all processes, which FSDP2 has made already."""
        gradients = self._gradients()
        scale = self.scaler.get_scale() if self.scaler is not None else 1.0
        if scale != 1.0:
            for gradient in gradients:
                gradient.div_(scale)
        if not self._shards.several:
            average(gradients)

    def _gradients(self) -> list[torch.Tensor]:
        """Of all scores where there are several processes: what one leaves out (LayerDrop) another one may not."""
        if process_count() > 1:
            for score in self._scores:
                score.grad = torch.zeros_like(score) if score.grad is None else score.grad
        return [score.grad for score in self._scores if score.grad is not None]

    def _add_penalty(self, penalty: float) -> None:
        """The gradient of penalty · mean over matrices of mean σ(S), without a graph."""
        for matrix, score in zip(self._matrices, self._scores, strict=True):
            open_ = torch.sigmoid(score)
            gradient = open_ * (1 - open_) * (penalty / (len(self._scores) * matrix.parameter.numel()))
            score.grad = gradient if score.grad is None else score.grad.add_(gradient)

    def state(self) -> dict[str, torch.Tensor]:
        """Scores, moments and the number of steps they rest on; of sharded matrices whole, on the first process."""
        tensors: dict[str, torch.Tensor] = {}
        for matrix, score in zip(self._matrices, self._scores, strict=True):
            own = {f"{matrix.name}.score": score.detach(), **moments_of(self._optimizer, score, matrix.name)}
            for name, value in own.items():
                whole = collected(value, matrix.parameter) if value.dim() else value
                if whole is not None:
                    tensors[name] = whole.cpu()
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            PruningError: a score is missing or of another shape.
        """
        for matrix, score in zip(self._matrices, self._scores, strict=True):
            name, parameter = matrix.name, matrix.parameter
            stored, moments = tensors.get(f"{name}.score"), stored_moments(tensors, name)
            if stored is None or any(value.shape not in (parameter.shape, ()) for value in (stored, *moments.values())):
                raise PruningError(f"{name}: the stored scores do not fit a matrix of shape {tuple(parameter.shape)}.")
            score.copy_(rows_of(stored, parameter))
            own = {key: rows_of(value, parameter) if value.dim() else value for key, value in moments.items()}
            put_moments(self._optimizer, score, own)


class ParameterScores(MovementScores):
    """Scores that are parameters of the model: autograd makes their gradients, and a training loop knows of them.

    The loop's optimizer may hold them, so that gradient scalers and DDP see to their gradients; but it must neither
    move nor decay them: `set_aside` takes the gradients away before its step, and `learn` makes the step after it.
    """

    def __init__(self, matrices: Sequence[WeightMatrix], scores: Sequence[torch.Tensor], learning_rate: float) -> None:
        super().__init__(matrices, learning_rate, scores=scores)
        self._aside: list[torch.Tensor | None] = []

    @torch.no_grad()
    def start_anew(self) -> None:
        """All scores are zero."""
        for score in self._scores:
            score.zero_()

    def scores(self, masks: MatrixMasks) -> list[torch.Tensor]:
        """The learnt scores, outside of any graph."""
        return [score.detach() for score in self._scores]

    def set_aside(self, scale: torch.Tensor | None = None) -> None:
        """Takes the gradients off the parameters.

        Args:
            scale: a gradient scaler's factor that is still in them (fused optimizers take it out themselves).
        """
        gradients = [score.grad for score in self._scores]
        self._aside = [
            gradient if gradient is None or scale is None else gradient / scale.to(gradient) for gradient in gradients
        ]
        for score in self._scores:
            score.grad = None

    def _complete_gradients(self) -> None:
        for score, gradient in zip(self._scores, self._aside, strict=True):
            score.grad = gradient
        self._aside = []
