"""Hard-concrete gates that learn which units the loss can do without, towards a budget (L0 regularisation)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..anatomy import Block
from ..errors import PruningError
from ..gates import gate_noise, hard_concrete, open_probability
from ..processes import average
from .moments import moments_of, put_moments, stored_moments

# log α of all gates at first: open, and near where they begin to close, which is log 11 ≈ 2.4.
INITIAL = 2.5
# log α stays within ± log 100: a gate that went further out would take too long to come back.
FARTHEST = math.log(100)


def expected_cost(log_alphas: Sequence[torch.Tensor], prices: Sequence[float], temperature: float) -> torch.Tensor:
    """What the open gates are expected to cost: Σ over units of price · P(gate is not zero).

    Args:
        log_alphas: one tensor per block.
        prices: what a unit costs, one number per block.
        temperature: of the gates, see `hard_concrete`.

    Returns:
        A float64 scalar.
    """
    parts = [
        price * open_probability(alpha.double(), temperature=temperature).sum()
        for alpha, price in zip(log_alphas, prices, strict=True)
    ]
    return torch.stack(parts).sum()


def penalty_slope(excess: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """The derivative of λ₁ · (s − t) + λ₂ · (s − t)² by the cost s (the Lagrangian of Wang et al. 2020).

    Args:
        excess: s − t, the cost above its target.
        multipliers: λ₁ and λ₂.
    """
    return multipliers[0] + 2 * multipliers[1] * excess


class LearntGates:
    """One log α for every unit of some blocks, and the multipliers of the penalty.

    They have an optimizer of their own, Adam, so that no optimizer, scheduler or checkpoint of the training loop has to
    know of them. The loss's gradient reaches log α through the sampled gates; the penalty's is added to it, without a
    graph. The penalty is a Lagrangian of the cost s and its target t (Wang et al. 2020, "Structured Pruning of Large
    Language Models"), whose multipliers grow while s is above t; or, with a factor, factor · s (Louizos et al. 2018).

    Args:
        blocks: whose units have gates.
        prices: what a unit costs, one number per block, as a fraction of what the whole model costs.
        rest: what units without gates cost, as such a fraction.
        device: of the model.
        learning_rate: of log α and of the multipliers.
        temperature: of the gates.
        factor: of the expected cost; None for the Lagrangian.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        prices: Sequence[float],
        rest: float,
        device: torch.device,
        *,
        learning_rate: float,
        temperature: float,
        factor: float | None = None,
    ) -> None:
        self._names = [block.key for block in blocks]
        self._prices, self._rest = list(prices), rest
        self._temperature, self._factor = temperature, factor
        self.log_alphas = [
            torch.full((block.units,), INITIAL, dtype=torch.float32, device=device, requires_grad=True)
            for block in blocks
        ]
        self._multipliers = torch.zeros(2, dtype=torch.float32, device=device, requires_grad=True)
        self._optimizer = torch.optim.Adam([*self.log_alphas, self._multipliers], lr=learning_rate)
        self._scales = [1.0] * len(self.log_alphas)
        self.draw()
        self.scaler: Any = None
        for index, alpha in enumerate(self.log_alphas):
            alpha.register_hook(partial(self._unscaled, index))

    def draw(self) -> None:
        """Draws the noise of one pass in training, for all blocks.

        A layer that runs several times in it (ALBERT) has the same gates each time, and so has one that is computed
        again for its gradient (gradient checkpointing).
        """
        self._noise = [gate_noise(alpha) for alpha in self.log_alphas]

    def sample(self, index: int) -> torch.Tensor:
        """The gates of block number `index` for the pass that `draw` has begun."""
        return hard_concrete(self.log_alphas[index], self._noise[index], temperature=self._temperature)

    @torch.no_grad()
    def settled(self, index: int) -> torch.Tensor:
        """The gates of block number `index` without noise, as they would be if training ended now."""
        return hard_concrete(self.log_alphas[index])

    @torch.no_grad()
    def cost(self) -> float:
        """What is expected to stay, as a fraction of what the whole model costs."""
        return float(self._cost())

    def _cost(self) -> torch.Tensor:
        return expected_cost(self.log_alphas, self._prices, self._temperature) + self._rest

    @torch.no_grad()
    def learn(self, target: float) -> None:
        """One step of the gates' optimizer, after one of the weights'.

        Args:
            target: the fraction of the model's cost to get to.
        """
        excess = self._cost() - target
        slope = float(penalty_slope(excess, self._multipliers)) if self._factor is None else self._factor
        for alpha, gradient, price in zip(self.log_alphas, self._gradients(), self._prices, strict=True):
            open_ = open_probability(alpha, temperature=self._temperature)
            alpha.grad = gradient + slope * price * open_ * (1 - open_)
        if self._factor is None:  # multipliers go up where the cost is too high
            self._multipliers.grad = -torch.stack([excess, excess.square()]).to(self._multipliers)
        self._optimizer.step()
        self._optimizer.zero_grad()
        for alpha in self.log_alphas:
            alpha.clamp_(-FARTHEST, FARTHEST)

    def _gradients(self) -> list[torch.Tensor]:
        """The loss's gradients, the mean over all processes; zero where they are beyond half precision."""
        found = [torch.zeros_like(alpha) if alpha.grad is None else alpha.grad for alpha in self.log_alphas]
        average(found)
        return [gradient if gradient.isfinite().all() else torch.zeros_like(gradient) for gradient in found]

    def _unscaled(self, index: int, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient without the gradient scaler's factor; what a step that overflowed has left is forgotten."""
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        if scale != self._scales[index]:  # an overflow lowers it; it grows only after a step that was made
            self.log_alphas[index].grad = None
        self._scales[index] = scale
        return gradient / scale

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from zip((f"{name}.log_alpha" for name in self._names), self.log_alphas, strict=True)
        yield "multipliers", self._multipliers

    def state(self) -> dict[str, torch.Tensor]:
        """log α, multipliers, their moments and the number of steps they rest on, on the CPU."""
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self._tensors():
            tensors |= {name: tensor.detach().cpu(), **moments_of(self._optimizer, tensor, name)}
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            PruningError: something is missing or of another shape.
        """
        for name, tensor in self._tensors():
            stored, moments = tensors.get(name), stored_moments(tensors, name)
            if stored is None or any(value.shape not in (tensor.shape, ()) for value in (stored, *moments.values())):
                raise PruningError(f"{name}: the stored gates do not fit {tensor.numel()} units.")
            tensor.copy_(stored)
            tensor.grad = None
            put_moments(self._optimizer, tensor, moments)
