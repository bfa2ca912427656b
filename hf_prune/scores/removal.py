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
# What is made of a matrix's columns on the way to units' costs is made for so many at a time.
COLUMNS_AT_ONCE = 256
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
    left = _Left.of(*_by_unit(gram.double(), weight.double(), columns), units, ridge)
    order: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    while len(left.units):
        count = min(together, len(left.units))
        cheapest = left.costs().argsort(stable=True)[: count if count == 1 else CANDIDATES * count]
        candidates = left.only(cheapest)
        for _ in range(count):
            costs = candidates.costs()
            place = costs.argmin()
            order.append(candidates.units[place].clone())
            errors.append(costs[place])
            candidates.remove(place[None])
        left.remove(torch.isin(left.units, torch.stack(order[-count:])).nonzero()[:, 0])
    return RemovalCurve(torch.stack(order), torch.stack(errors))


def _by_unit(gram: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with the columns of a unit next to each other; the same tensors where they are so already."""
    by_unit = columns.argsort(stable=True)
    if torch.equal(columns[by_unit], columns):
        return gram, weight
    return gram[by_unit[:, None], by_unit], weight[:, by_unit]


@dataclass
class _Left:
    """Units that are left, next to each other: their weights after the refit, and their part of the inverse.

    Both are changed in place: of a block of thousands of filters, one matrix is as large as all of its weights.

    Attributes:
        units: `[units]`, in any order.
        inverse: `[units · width, units · width]`.
        weight: `[hidden, units · width]`.
    """

    units: torch.Tensor
    inverse: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, gram: torch.Tensor, weight: torch.Tensor, units: int, ridge: float) -> _Left:
        inverse = torch.cholesky_inverse(_damped_factor(gram, ridge))
        return cls(torch.arange(units, device=gram.device), inverse, weight.clone())

    @property
    def width(self) -> int:
        """Columns per unit."""
        return self.weight.shape[1] // max(1, len(self.units))

    def costs(self) -> torch.Tensor:
        """What each unit's removal would add to the error, `[units]`."""
        some = max(1, COLUMNS_AT_ONCE // self.width)
        starts = range(0, len(self.units), some)
        return torch.cat([self._costs(slice(start, start + some)) for start in starts])

    def only(self, places: torch.Tensor) -> _Left:
        """Some of the units, with all others left in the block."""
        columns = self._columns(places)
        return _Left(self.units[places], self.inverse[columns[:, None], columns], self.weight[:, columns])

    def remove(self, places: torch.Tensor) -> None:
        """Removes units and refits the others' weights."""
        gone = self._columns(places)
        across = self.inverse[gone]
        change = torch.cholesky_solve(across, torch.linalg.cholesky(across[:, gone]))
        self.weight.addmm_(self.weight[:, gone], change, alpha=-1)
        self.inverse.addmm_(across.T, change, alpha=-1)
        self._close_gaps(places)

    def _costs(self, some: slice) -> torch.Tensor:
        """tr(W_u ((H⁻¹)_uu)⁻¹ W_uᵀ) = tr(((H⁻¹)_uu)⁻¹ W_uᵀ W_u), because a unit has fewer columns than outputs."""
        units, width = len(self.units), self.width
        own = self.inverse.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)[some]
        weights = self.weight.view(-1, units, width)[:, some]
        if width == 1:
            return weights.square().sum((0, 2)) / own[:, 0, 0]
        squares = torch.einsum("huv,huw->uvw", weights, weights)
        return torch.cholesky_solve(squares, torch.linalg.cholesky(own)).diagonal(dim1=1, dim2=2).sum(1)

    def _close_gaps(self, places: torch.Tensor) -> None:
        """The last units move to the places of those that go."""
        count = len(self.units) - len(places)
        stays = torch.ones_like(self.units, dtype=torch.bool)
        stays[places] = False
        free, last = (~stays[:count]).nonzero()[:, 0], count + stays[count:].nonzero()[:, 0]
        to, origin = self._columns(free), self._columns(last)
        self.inverse[to] = self.inverse[origin]
        self.inverse[:, to] = self.inverse[:, origin]
        self.weight[:, to] = self.weight[:, origin]
        self.units[free] = self.units[last]
        size = count * self.width
        self.inverse, self.weight = self.inverse[:size, :size], self.weight[:, :size]
        self.units = self.units[:count]

    def _columns(self, places: torch.Tensor) -> torch.Tensor:
        width = self.width
        return (places[:, None] * width + torch.arange(width, device=places.device)).flatten()


def _damped_factor(gram: torch.Tensor, ridge: float) -> torch.Tensor:
    """The Cholesky factor of the damped Gram matrix.

    Sums over tokens are rounded in proportion to their squares, and what is left of them around a mean may be no more
    than that: of inputs that hardly vary. As in the refit, the damping is then stronger.
    """
    for times in STRONGER:
        damping = times * ridge * gram.diagonal().mean()
        damped = gram.clone()
        damped.diagonal().add_(damping)
        factor, info = torch.linalg.cholesky_ex(damped)
        # Without rounding, no pivot is below the damping.
        if int(info) == 0 and bool(factor.diagonal().min().square() >= damping / 2):
            return factor
    raise PruningError(
        f"The Gram matrix is not positive definite, with a ridge of {ridge} as with {STRONGER[-1]} times that."
        " Calibrate on more examples, or use importance='fisher'."
    )
