"""What a least-squares problem over calibration tokens needs to remember, in one streaming pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Enough rows for matrix products at full speed.
TOKENS_AT_ONCE = 4096


@dataclass
class NormalEquations:
    """Sums over tokens of a block's inputs h (with a trailing 1 for the bias) and targets b.

    Attributes:
        gram: Σ h hᵀ, `[columns + 1, columns + 1]`, float64.
        cross: Σ h bᵀ, `[columns + 1, hidden]`, float64.
        target_square: Σ ‖b‖².
        tokens: number of tokens.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    target_square: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def zeros(cls, columns: int, hidden: int, device: torch.device) -> NormalEquations:
        """Of no tokens."""

        def double(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(double(columns + 1, columns + 1), double(columns + 1, hidden), double(), double())

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds tokens: inputs `[tokens, columns]`, targets `[tokens, hidden]`, float32 or float64."""
        extended = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        self.gram += (extended.T @ extended).double()
        self.cross += (extended.T @ targets).double()
        self.target_square += targets.square().sum().double()
        self.tokens += len(inputs)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.gram + other.gram,
            self.cross + other.cross,
            self.target_square + other.target_square,
            self.tokens + other.tokens,
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything that is a sum over tokens."""
        return self.gram, self.cross, self.target_square, self.tokens

    def error(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> float:
        """Σ ‖W h + bias − b‖² over the tokens.

        Args:
            weight: `[hidden, columns]`.
            bias: `[hidden]`, or None for no bias.
        """
        solution = extend(weight, bias)
        quadratic = (solution * (self.gram @ solution)).sum()
        return float(quadratic - 2 * (solution * self.cross).sum() + self.target_square)


class TokenBuffer:
    """Hands tokens to `NormalEquations` many at a time: products are fast when there are enough rows.

    Args:
        equations: where the tokens go.
    """

    def __init__(self, equations: NormalEquations) -> None:
        self.equations = equations
        self._inputs: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds tokens; see `NormalEquations.add`."""
        self._inputs.append(inputs)
        self._targets.append(targets)
        if sum(map(len, self._inputs)) >= TOKENS_AT_ONCE:
            self.flush()

    def flush(self) -> NormalEquations:
        """Hands over what waits, and returns the equations."""
        if self._inputs:
            self.equations.add(torch.cat(self._inputs), torch.cat(self._targets))
            self._inputs, self._targets = [], []
        return self.equations


def extend(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`[columns + 1, hidden]` float64: the transposed weight over the bias (zeros for none)."""
    last = weight.new_zeros(weight.shape[0]) if bias is None else bias
    return torch.cat([weight, last[:, None]], dim=1).double().T
