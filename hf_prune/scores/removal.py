"""What it costs to remove units of a block whose output projection is refitted afterwards.

Optimal Brain Surgeon on a block's least-squares problem, unit by unit (Hassibi and Stork 1992; for heads and filters
Kurtic et al. 2023, "ZipLM", section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import isotonic_regression

from ..errors import PruningError

# Units that a step removes are chosen among this many times as many of the cheapest ones.
CANDIDATES = 4
# Later units of a curve score more by this much, relatively, where the curve does not tell them apart.
NEXT = 1e-9
# Times the ridge, where rounding in the Gram matrix takes more than the ridge makes up for.
STRONGER = (1, 10, 100)


@dataclass(frozen=True)
class RemovalCurve:
    """In which order a block's units go, and what is lost on the way.

    Attributes:
        order: the units, first to go first, `[units]`.
        errors: what the removal of the next unit adds to the error left after the refit, `[units]`, in that order.
    """

    order: torch.Tensor
    errors: torch.Tensor

    def scores(self) -> torch.Tensor:
        """A score per unit, `[units]`, so that the lowest scores are those that go first.

        They add up to the error: of all non-decreasing sequences the closest to `errors` (isotonic regression), whose
        partial sums are the curve's lower convex hull.
        """
        slopes = torch.from_numpy(isotonic_regression(self.errors.clamp(min=0).cpu().numpy()).x.copy())
        places = torch.arange(len(slopes), dtype=slopes.dtype)
        tiny = torch.finfo(slopes.dtype).tiny
        ranked = slopes * (1 + NEXT * places) + tiny * places
        return torch.empty_like(ranked).index_copy_(0, self.order.cpu(), ranked).to(self.errors.device)


def removal_curve(
    gram: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, ridge: float = 0.0, together: int = 1
) -> RemovalCurve:
    """Removes a block's units one by one, each time the one without which the refitted block errs least.

    With the inverse H⁻¹ of the damped Gram matrix, removing a unit u with the columns W_u of the weight costs
    tr(W_u ((H⁻¹)_uu)⁻¹ W_uᵀ); the refit of the others changes their weights by −W_u ((H⁻¹)_uu)⁻¹ (H⁻¹)_u.

    Args:
        gram: Σ h hᵀ over tokens of the projection's inputs, `[columns, columns]`; centred where the refit moves a bias.
        weight: the output projection, `[hidden, columns]`; multiplied from the left by a square root of a metric where
            errors count differently in different directions.
        columns: the unit that each column belongs to, `[columns]`, from 0 on; every unit has equally many.
        ridge: damping, relative to the mean diagonal of `gram`: what the refit is damped with. It is stronger where
            rounding leaves a matrix that is not positive definite.
        together: units removed between two updates of the whole matrices. They are chosen one by one among the
            cheapest 4 · `together` units, with what the others of them do taken into account; 1 compares all units
            each time.

    Raises:
        PruningError: the shapes do not fit, or the Gram matrix is not positive definite, however it is damped.
    """
    size = len(gram)
    units = int(columns.max()) + 1 if len(columns) else 0
    if gram.shape != (size, size) or weight.shape[1:] != (size,) or len(columns) != size:
        raise PruningError(
            f"A Gram matrix {tuple(gram.shape)}, a weight {tuple(weight.shape)} and {len(columns)} columns do not fit:"
            " [columns, columns], [hidden, columns] and [columns]."
        )
    if bool((columns.bincount(minlength=units) * units != size).any()):
        raise PruningError(f"{size} columns are not equally many for each of {units} units.")
    if not gram.any():  # nothing comes out of this block but its bias
        nothing = torch.zeros(units, dtype=torch.float64, device=gram.device)
        return RemovalCurve(torch.arange(units, device=gram.device), nothing)
    by_unit = columns.argsort(stable=True)
    left = _Left.of(gram.double()[by_unit][:, by_unit], weight.double()[:, by_unit], units, ridge)
    order: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    while len(left.units):
        count = min(together, len(left.units))
        cheapest = left.costs().argsort(stable=True)[: count if count == 1 else CANDIDATES * count]
        candidates = left.only(cheapest)
        for _ in range(count):
            costs = candidates.costs()
            place = costs.argmin()
            order.append(candidates.units[place])
            errors.append(costs[place])
            candidates = candidates.without(place[None])
        left = left.without(torch.isin(left.units, torch.stack(order[-count:])).nonzero()[:, 0])
    return RemovalCurve(torch.stack(order), torch.stack(errors))


@dataclass(frozen=True)
class _Left:
    """Units that are left, next to each other: their weights after the refit, and their part of the inverse.

    Attributes:
        units: `[units]`.
        inverse: `[units · width, units · width]`.
        weight: `[hidden, units · width]`.
    """

    units: torch.Tensor
    inverse: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, gram: torch.Tensor, weight: torch.Tensor, units: int, ridge: float) -> _Left:
        return cls(torch.arange(units, device=gram.device), torch.cholesky_inverse(_damped_factor(gram, ridge)), weight)

    @property
    def width(self) -> int:
        """Columns per unit."""
        return self.weight.shape[1] // max(1, len(self.units))

    def costs(self) -> torch.Tensor:
        """What each unit's removal would add to the error, `[units]`."""
        units, width = len(self.units), self.width
        own = self.inverse.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weights = self.weight.T.reshape(units, width, len(self.weight))
        return (weights * torch.cholesky_solve(weights, torch.linalg.cholesky(own))).sum((1, 2))

    def only(self, places: torch.Tensor) -> _Left:
        """Some of the units, with all others left in the block."""
        columns = self._columns(places)
        return _Left(self.units[places], self.inverse[columns][:, columns], self.weight[:, columns])

    def without(self, places: torch.Tensor) -> _Left:
        """The units after some were removed and the others' weights refitted."""
        stays = torch.ones(len(self.units), dtype=torch.bool, device=places.device)
        stays[places] = False
        gone, kept = self._columns(places), self._columns(stays.nonzero()[:, 0])
        across = self.inverse[gone][:, kept]
        change = torch.cholesky_solve(across, torch.linalg.cholesky(self.inverse[gone][:, gone]))
        return _Left(
            self.units[stays],
            self.inverse[kept][:, kept] - across.T @ change,
            self.weight[:, kept] - self.weight[:, gone] @ change,
        )

    def _columns(self, places: torch.Tensor) -> torch.Tensor:
        width = self.width
        return (places[:, None] * width + torch.arange(width, device=places.device)).flatten()


def _damped_factor(gram: torch.Tensor, ridge: float) -> torch.Tensor:
    """The Cholesky factor of the damped Gram matrix.

    Sums over tokens are rounded in proportion to their squares, and what is left of them around a mean may be no more
    than that: of inputs that hardly vary. As in the refit, the damping is then stronger.
    """
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for times in STRONGER:
        damping = times * ridge * gram.diagonal().mean()
        factor, info = torch.linalg.cholesky_ex(gram + damping * unit)
        # Without rounding, no pivot is below the damping.
        if int(info) == 0 and bool(factor.diagonal().min().square() >= damping / 2):
            return factor
    raise PruningError(
        f"The Gram matrix is not positive definite, with a ridge of {ridge} as with {STRONGER[-1]} times that."
        " Calibrate on more examples, or use importance='fisher'."
    )
