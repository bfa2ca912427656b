"""What a least-squares problem over calibration tokens needs to remember, in one streaming pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Enough rows for matrix products at full speed.
TOKENS_AT_ONCE = 4096
# Rows of a matrix that are worked on at once, so that what is made on the way takes little memory beside the matrix.
ROWS_AT_ONCE = 256


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
        self.add_extended(torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1), targets)

    def add_extended(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds tokens whose inputs `[tokens, columns + 1]` have their trailing 1 already."""
        for some in some_rows(self.gram):
            self.gram[some] += inputs[:, some].T @ inputs
            self.cross[some] += inputs[:, some].T @ targets
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

    def is_finite(self) -> bool:
        """Whether all sums are finite numbers."""
        # A sum is not finite if any of its terms is not; looking at the terms themselves takes a copy of them.
        return all(bool(torch.isfinite(tensor.sum())) for tensor in self.tensors())

    def error(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> float:
        """Σ ‖W h + bias − b‖² over the tokens.

        Args:
            weight: `[hidden, columns]`.
            bias: `[hidden]`, or None for no bias.
        """
        total = self.target_square.clone()
        for some in some_rows(weight):
            solution = extend(weight[some], None if bias is None else bias[some])
            total += (solution * (self.gram @ solution - 2 * self.cross[:, some])).sum()
        return float(total)


class TokenBuffer:
    """Hands tokens to `NormalEquations` many at a time: products are fast when there are enough rows.

    Args:
        equations: where the tokens go.
    """

    def __init__(self, equations: NormalEquations) -> None:
        self.equations = equations
        self._waiting = 0
        self._inputs = self._targets = torch.zeros(0)

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds tokens; see `NormalEquations.add`."""
        if not len(self._inputs):
            self._inputs = inputs.new_empty(TOKENS_AT_ONCE, inputs.shape[1] + 1)
            self._targets = targets.new_empty(TOKENS_AT_ONCE, targets.shape[1])
        for rows, wanted in zip(inputs.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True):
            if self._waiting + len(rows) > TOKENS_AT_ONCE:
                self.flush()
            place = slice(self._waiting, self._waiting + len(rows))
            self._inputs[place, :-1], self._inputs[place, -1], self._targets[place] = rows, 1, wanted
            self._waiting += len(rows)

    def flush(self) -> NormalEquations:
        """Hands over what waits, and returns the equations."""
        if self._waiting:
            self.equations.add_extended(self._inputs[: self._waiting], self._targets[: self._waiting])
            self._waiting = 0
        return self.equations


def some_rows(matrix: torch.Tensor) -> Iterator[slice]:
    """The rows of a matrix, some at a time."""
    for start in range(0, len(matrix), ROWS_AT_ONCE):
        yield slice(start, start + ROWS_AT_ONCE)


def extend(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`[columns + 1, hidden]` float64: the transposed weight over the bias (zeros for none)."""
    last = weight.new_zeros(weight.shape[0]) if bias is None else bias
    return torch.cat([weight, last[:, None]], dim=1).double().T
