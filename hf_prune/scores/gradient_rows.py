"""Per-example gate gradients over many examples, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ..anatomy import ModelAnatomy
from ..calibration import Batch, CalibrationData
from ..errors import PruningError
from ..kept_steps import KeptStep, Sizes
from ..offloading import device_of
from .gradients import iterate_gradients, warn_of_idle
from .model_labels import Labels, iterate_model_gradients
from .output_information import OutputInformation

_PART, _COUNT = "sums", "batches"


class GradientRows:
    """The gate gradients of one block over many examples, bounded in memory.

    `matrix()` has the same Gram matrix as the stack of all rows that were added, which is all that rearrangement
    needs; once there are more than twice as many rows as units, they are replaced by the triangular factor of their QR
    decomposition.

    Args:
        units: units of the block.
        device: where the gradients come from.
        keep_rows: whether `matrix()` will be asked for; the sums need no rows.

    Attributes:
        examples: rows added so far.
        absolute_sum: Σ|gradient| over examples, `[units]`, float64.
        square_sum: Σ gradient² over examples, `[units]`, float64.
    """

    def __init__(self, units: int, device: torch.device | str = "cpu", keep_rows: bool = True) -> None:
        self.units = units
        self.examples = 0
        self.absolute_sum = torch.zeros(units, dtype=torch.float64, device=device)
        self.square_sum = torch.zeros(units, dtype=torch.float64, device=device)
        self._keep_rows = keep_rows
        self._parts = [torch.zeros(0, units, device=device)]

    def add(self, rows: torch.Tensor) -> None:
        """Adds gradients `[examples, units]`."""
        rows = rows.detach().float()
        self.examples += len(rows)
        self.absolute_sum += rows.abs().double().sum(0)
        self.square_sum += rows.double().square().sum(0)
        if not self._keep_rows:
            return
        self._parts.append(rows)
        if sum(map(len, self._parts)) > 2 * max(self.units, 256):
            self._parts = [torch.linalg.qr(torch.cat(self._parts).double(), mode="r").R.float()]

    def matrix(self) -> torch.Tensor:
        """`[rows, units]`, float32.

        Raises:
            PruningError: no rows were kept.
        """
        if not self._keep_rows:
            raise PruningError("The rows of these gradients were not kept; collect them with keep_rows=True.")
        return torch.cat(self._parts)

    def state(self) -> dict[str, torch.Tensor]:
        """What `load_state` takes to go on bit for bit."""
        sums = {"examples": torch.tensor(self.examples), "absolute": self.absolute_sum, "square": self.square_sum}
        return sums | ({"rows": self.matrix()} if self._keep_rows else {})

    def state_sizes(self) -> Sizes:
        """Of the tensors in `state`."""
        sums = (torch.float64, (self.units,))
        sizes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "examples": (torch.int64, ()),
            "absolute": sums,
            "square": sums,
        }
        return sizes | ({"rows": (torch.float32, (-1, self.units))} if self._keep_rows else {})

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes on where `state` was taken."""
        self.examples = int(tensors["examples"])
        self.absolute_sum, self.square_sum = tensors["absolute"], tensors["square"]
        if self._keep_rows:
            self._parts = [tensors["rows"]]


def collect_gradients(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    data: CalibrationData,
    keep_rows: bool = True,
    labels: Labels = "data",
    information: OutputInformation | None = None,
    batches: Sequence[Batch] | None = None,
) -> dict[str, GradientRows]:
    """Gate gradients of every block over this process's calibration data, by block key.

    A step of `data.steps`: an interrupted pass goes on behind the last batch whose sums were kept.

    Args:
        model: the dense model.
        anatomy: from `describe_model`.
        data: the calibration data.
        keep_rows: see `GradientRows`.
        labels: those in the "data", or the "model"'s own, see `iterate_model_gradients`.
        information: is summed up along the way.
        batches: this process's first batches from `data`, where not all of them are wanted.
    """
    device = device_of(model)
    rows = {block.key: GradientRows(block.units, device, keep_rows) for block in anatomy.blocks}
    sums = _KeptSums(data.steps.step("gradients"), rows, {} if information is None else information.matrices)
    first = sums.restore(device)
    total = data.batches if batches is None else len(batches)
    bar = tqdm(data if batches is None else batches, total=total, desc="Gate gradients", unit="batch")
    left = sums.kept_between(bar, first)
    if labels == "model":
        found = iterate_model_gradients(model, anatomy, left, information, data.batch_number, first)
    else:
        found = iterate_gradients(model, anatomy, left, information, first)
    with closing(found):  # or the model would stay frozen as long as somebody holds the traceback
        for gradients in found:
            for block, gradient in zip(anatomy.blocks, gradients, strict=True):
                rows[block.key].add(gradient)
    warn_of_idle({key: row.absolute_sum for key, row in rows.items()})
    return rows


class _KeptSums:
    """Sums over batches that outlive an interruption of the pass that makes them.

    Args:
        step: where they are kept.
        rows: by block key.
        matrices: by block key, float64; they are summed up in place.
    """

    def __init__(
        self, step: KeptStep, rows: Mapping[str, GradientRows], matrices: MutableMapping[str, torch.Tensor]
    ) -> None:
        self._step, self._rows, self._matrices = step, rows, matrices

    def restore(self, device: torch.device) -> int:
        """Puts kept sums back; returns the number of batches in them."""
        sizes = {f"{key}.{name}": size for key, row in self._rows.items() for name, size in row.state_sizes().items()}
        matrices = {_matrix(key): (matrix.dtype, tuple(matrix.shape)) for key, matrix in self._matrices.items()}
        kept = self._step.read(_PART, {_COUNT: (torch.int64, ()), **sizes, **matrices}, device)
        if kept is None:
            return 0
        tensors, _ = kept
        for key, row in self._rows.items():
            row.load_state({name: tensors[f"{key}.{name}"] for name in row.state_sizes()})
        for key in list(self._matrices):
            self._matrices[key] = tensors[_matrix(key)].to(self._matrices[key].device)  # where its layer is
        return int(tensors[_COUNT])

    def kept_between(self, batches: Iterable[Batch], first: int) -> Iterator[Batch]:
        """The batches from number `first` on; what they add up to is kept from time to time, and in the end.

        Whoever takes the next batch has added up everything before it.
        """
        number = first
        for batch in itertools.islice(batches, first, None):
            if number > first and self._step.is_due:
                self._keep(number)
            yield batch
            number += 1
        if number > first:
            self._keep(number)

    def _keep(self, count: int) -> None:
        if not self._step.keeps:
            return
        rows = {f"{key}.{name}": value for key, row in self._rows.items() for name, value in row.state().items()}
        matrices = {_matrix(key): matrix for key, matrix in self._matrices.items()}
        self._step.write(_PART, {_COUNT: torch.tensor(count), **rows, **matrices})


def _matrix(key: str) -> str:
    return f"{key}.output_information"
