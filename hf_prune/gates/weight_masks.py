"""Masks on single weights.

The weights in the model are always the masked ones, and what was removed is kept beside them: so nothing in the
modelling code, in the names of parameters or in the state dict changes, tied weights stay tied, and whatever saves the
model at any time saves an ordinary checkpoint with zeros. Gradients are masked, as they are where a forward pass
multiplies a raw weight by its mask (Gordon et al. 2020); a removed weight stays what it was when it was removed, so it
can come back. Where FSDP2 shards the weights, all of this is done on a process's own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..anatomy import WeightMatrix, all_matrices
from ..errors import PruningError
from ..shards import collected, first_row, is_sharded, own_rows, rows_of
from .bits import pack_mask, unpack_mask
from .matrix_masks import MatrixMasks, check_masks

_OWNER = "_weight_masks"

GradientWatcher = Callable[[int, torch.Tensor], None]


class WeightMasks(MatrixMasks):
    """Masks on some of a model's weight matrices, until `remove()` is called.

    Raises:
        PruningError: a matrix has masks already.
    """

    def __init__(self, matrices: Sequence[WeightMatrix], watch_gradients: GradientWatcher | None = None) -> None:
        """Puts masks that keep everything on the matrices.

        `watch_gradients` gets a matrix's number and the loss's gradient with respect to its masked weights, before
        that is masked, each time autograd has it; of sharded matrices when it has been reduced over the processes,
        for the weights that stay added up since the parameter last had none.
        """
        for matrix in matrices:
            if hasattr(matrix.parameter, _OWNER):
                raise PruningError(
                    f"{matrix.name} is masked already: two strategies cannot share a matrix. Give each its own with"
                    " target_modules, or remove_weight_masks first."
                )
        self.matrices = tuple(matrices)
        self._masks = [torch.ones_like(item.values, dtype=torch.bool) for item in self.matrices]
        self._removed: list[torch.Tensor | None] = [None] * len(self.matrices)
        self._watch = watch_gradients
        self._handles: list[RemovableHandle] = []
        for index, matrix in enumerate(self.matrices):
            setattr(matrix.parameter, _OWNER, self)
            if matrix.parameter.requires_grad:
                self._handles.append(self._hooked(index))
        self._removed_count = 0

    def _hooked(self, index: int) -> RemovableHandle:
        parameter = self.matrices[index].parameter
        if is_sharded(parameter):  # autograd sees whole copies of it, and FSDP2 puts the reduced gradient here
            return parameter.register_post_accumulate_grad_hook(partial(self._mask_reduced_gradient, index))
        return parameter.register_hook(partial(self._mask_gradient, index))

    @property
    def masks(self) -> list[torch.Tensor]:
        """One bool tensor per matrix, of its values' shape, True where a weight stays; change them with `set`."""
        return self._masks

    @property
    def removed_count(self) -> int:
        """How many weights are removed; of sharded matrices counted when masks are set, so any process may ask."""
        return self._removed_count

    @torch.no_grad()
    def set(self, masks: Sequence[torch.Tensor]) -> None:
        """Removes and brings back weights, so that these masks hold.

        Args:
            masks: one bool tensor per matrix, of its values' shape; they are kept, not copied.

        Raises:
            PruningError: their number, a shape or a type does not fit.
        """
        check_masks(self.matrices, masks)
        for index, (matrix, mask) in enumerate(zip(self.matrices, masks, strict=True)):
            raw, values = self._removed[index], matrix.values
            if raw is None:
                raw = self._removed[index] = values.clone()
            else:  # in place: a new matrix at every update would leave holes between a training's activations
                torch.where(self.masks[index], values, raw, out=raw)
            self._masks[index] = mask.to(values.device)
            values.copy_(raw).mul_(self.masks[index])
        self._removed_count = super().removed_count

    def raw(self, index: int) -> torch.Tensor:
        """A matrix's weights with the removed ones in their places, as a tensor of its own."""
        values, removed = self.matrices[index].values, self._removed[index]
        return values.clone() if removed is None else torch.where(self.masks[index], values, removed)

    @torch.no_grad()
    def apply(self) -> None:
        """Sets removed weights to zero again; after an optimizer's step, whose momentum and decay move them, too."""
        for matrix, mask, removed in zip(self.matrices, self.masks, self._removed, strict=True):
            if removed is not None and matrix.parameter.requires_grad:
                matrix.values.mul_(mask)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """While it is open, the model has its raw weights."""
        with torch.no_grad():
            for index, matrix in enumerate(self.matrices):
                matrix.values.copy_(self.raw(index))
        try:
            yield
        finally:
            self.apply_all()

    @torch.no_grad()
    def apply_all(self) -> None:
        """Sets removed weights to zero, of frozen matrices, too."""
        for matrix, mask in zip(self.matrices, self.masks, strict=True):
            matrix.values.mul_(mask)

    def delete(self) -> None:
        """Forgets what was removed and frees all weights: those that are zero are zero, and learn again."""
        self._masks = [torch.ones_like(mask) for mask in self.masks]
        self._removed = [None] * len(self.masks)
        self._removed_count = 0

    def remove(self, *, restore: bool = True) -> None:
        """Takes the masks off.

        Args:
            restore: bring removed weights back; otherwise they stay zero.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for index, matrix in enumerate(self.matrices):
            if getattr(matrix.parameter, _OWNER, None) is self:
                delattr(matrix.parameter, _OWNER)
                with torch.no_grad():
                    if restore:
                        matrix.values.copy_(self.raw(index))
                    else:  # multiplication has left negative zeros
                        matrix.values.masked_fill_(~self.masks[index], 0)

    def state(self) -> dict[str, torch.Tensor]:
        """What bringing weights back takes, beside the masked weights: the masks' bits and the removed values.

        Returns:
            `<name>.bits`, uint8, and `<name>.removed`, 1-D in row-major order, on the CPU. Of sharded matrices every
            process must ask for it, and the first one gets it, of whole matrices: so it does not depend on the number
            of processes.
        """
        tensors = {}
        for index, matrix in enumerate(self.matrices):
            own = self._removed[index]
            if own is None:
                continue
            mask, removed = (collected(part, matrix.parameter) for part in (self.masks[index], own))
            if mask is not None and removed is not None:
                tensors[f"{matrix.name}.bits"] = pack_mask(mask)
                tensors[f"{matrix.name}.removed"] = removed[~mask]
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`, for a model that holds the masked weights already, or frozen ones without masks.

        Raises:
            PruningError: tensors do not fit the matrices.
        """
        loaded = [self._loaded(index, tensors) for index in range(len(self.matrices))]
        for index, (mask, removed) in enumerate(loaded):
            self._masks[index], self._removed[index] = mask, removed
        self._removed_count = super().removed_count
        self.apply_all()  # an adapter's checkpoint does not hold the frozen weights below it

    def _loaded(self, index: int, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        matrix = self.matrices[index]
        parameter = matrix.parameter
        bits, values = tensors.get(f"{matrix.name}.bits"), tensors.get(f"{matrix.name}.removed")
        if bits is None or values is None:
            return torch.ones_like(matrix.values, dtype=torch.bool), None
        whole = unpack_mask(bits, parameter.shape, matrix.name)
        count = whole.numel() - int(whole.count_nonzero())
        if values.shape != (count,) or values.dtype != parameter.dtype:
            raise PruningError(
                f"{matrix.name}: {count} removed weights of {parameter.dtype} are needed, got {tuple(values.shape)} of"
                f" {values.dtype}."
            )
        mask, removed = rows_of(whole, parameter), torch.zeros_like(matrix.values)
        before = int((~whole[: first_row(parameter)]).sum())
        own = values[before : before + mask.numel() - int(mask.count_nonzero())]
        mask = mask.to(removed.device)
        removed[~mask] = own.to(removed.device)
        return mask, removed

    def _mask_gradient(self, index: int, gradient: torch.Tensor) -> torch.Tensor:
        if self._watch is not None:
            self._watch(index, gradient)
        return gradient if self._removed[index] is None else gradient * self.masks[index]

    def _mask_reduced_gradient(self, index: int, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        gradient = own_rows(parameter.grad)
        if self._watch is not None:
            self._watch(index, gradient)
        if self._removed[index] is not None:
            gradient.mul_(self.masks[index])


def add_weight_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> WeightMasks:
    """Masks weight matrices of a model.

    Args:
        model: any Transformers model.
        masks: bool tensors by parameter name, True where a weight stays.

    Returns:
        The masks, to change or to remove. After each step of an optimizer `apply()` must be called; `PruningCallback`
        does that by itself.

    Raises:
        PruningError: a name that is no weight matrix of the model, a shape that does not fit, or a matrix that is
            masked already.
    """
    known = {matrix.name: matrix for matrix in all_matrices(model)}
    for name in masks:
        if name not in known:
            raise PruningError(f"{name} is no weight matrix of {type(model).__name__}; it has {', '.join(known)}.")
    matrices = [known[name] for name in masks]
    check_masks(matrices, list(masks.values()))
    chosen = WeightMasks(matrices)
    chosen.set([mask.clone() for mask in masks.values()])  # the caller's own may change
    return chosen


def weight_masks_of(model: nn.Module) -> list[WeightMasks]:
    """The masks that are on a model's weights, in no particular grouping."""
    found = [getattr(parameter, _OWNER, None) for parameter in model.parameters()]
    return list({id(masks): masks for masks in found if masks is not None}.values())


def remove_weight_masks(model: nn.Module, *, restore: bool = True) -> None:
    """Takes all weight masks off a model; removed weights come back unless `restore=False`."""
    for masks in weight_masks_of(model):
        masks.remove(restore=restore)
