"""Proof that blocks found by their names are what they seem: masked and cut, they must give the same outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .blocks import Block, ModelAnatomy, linear_at, stored, weight_of
from .cut import cut_block
from .example_inputs import example_batch
from .position_tables import give_own_tables
from .undo import UndoLog

# Largest accepted difference between masked and cut outputs, relative to what the mask changes.
AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-2}
HALF_AGREEMENT = 0.3


def prove(model: PreTrainedModel, anatomy: ModelAnatomy, model_types: Sequence[str]) -> None:
    """Removes half of every block's units on an example batch, once by masking and once by cutting.

    The model is as it was afterwards. Models without weights (on the meta device) are believed: they are about to be
    loaded with sizes that were proved when they were cut.

    Raises:
        UnsupportedModelError: the outputs differ, the cut model does not run, or no example batch can be made.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    kept = {block.key: _half(block) for block in anatomy.blocks}
    names = ", ".join(repr(name) for name in model_types)
    refusal = (
        f"Models of type {names} are not in the family table. Their layers look familiar, but {{}}. Describe them in"
        " hf_prune/anatomy/families.py (CONTRIBUTING.md, 'Adding a model family')."
    )
    try:
        batch = example_batch(model)
        with _undisturbed(model), torch.no_grad():
            dense = _outputs(model, batch)
            with _changed(_mask, model, anatomy, kept):
                masked = _outputs(model, batch)
            with _changed(_cut, model, anatomy, kept):
                cut = _outputs(model, batch)
    except UnsupportedModelError:
        raise
    except Exception as error:  # modelling code fails in as many ways as there is modelling code
        reason = f"a cut model did not run ({type(error).__name__}: {str(error)[:200]})"
        raise UnsupportedModelError(refusal.format(reason)) from error
    effect, difference = _distance(dense, masked), _distance(masked, cut)
    allowed = AGREEMENT.get(model.dtype, HALF_AGREEMENT) * effect
    if not effect > 0 or not difference <= allowed:
        reason = f"cutting differs from masking by {difference:.3g}, where the mask changes outputs by {effect:.3g}"
        raise UnsupportedModelError(refusal.format(reason))


def _half(block: Block) -> tuple[int, ...]:
    """Half of the units, drawn at random but always the same way."""
    keep = max(block.minimum, block.units // 2)
    order = torch.randperm(block.units, generator=torch.Generator().manual_seed(block.units)).tolist()
    return tuple(sorted(order[:keep]))


def _mask(model: nn.Module, block: Block, units: Sequence[int], log: UndoLog) -> None:
    layer = model.get_submodule(block.layer)
    kept = torch.zeros(block.units)
    kept[list(units)] = 1
    weight = weight_of(layer, block.output).detach()
    weight = weight * block.spread(kept).to(weight)
    log.set(linear_at(layer, block.output), "weight", nn.Parameter(stored(weight, block.output), requires_grad=False))


def _cut(model: nn.Module, block: Block, units: Sequence[int], log: UndoLog) -> None:
    cut_block(model.get_submodule(block.layer), block, units, log)


@contextmanager
def _changed(change: Any, model: nn.Module, anatomy: ModelAnatomy, kept: dict[str, tuple[int, ...]]) -> Iterator[None]:
    log = UndoLog()
    try:
        if change is _cut:
            give_own_tables(model, anatomy.blocks, set(kept), log)
        for block in anatomy.blocks:
            change(model, block, kept[block.key], log)
        yield
    finally:
        log.roll_back()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and a private random state; both are restored."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [model.device] if model.device.type == "cuda" else []  # type: ignore[union-attr]
    try:
        with torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _outputs(model: nn.Module, batch: dict[str, Any]) -> list[torch.Tensor]:
    torch.manual_seed(0)  # masks drawn at random in the forward pass must be the same ones each time
    return list(_tensors(model(**batch)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value.double()
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "to_tuple"):
        yield from _tensors(value.to_tuple())


def _distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Largest difference between corresponding outputs; infinite where they do not correspond or are not numbers."""
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return float("inf")
    pairs = [(a - b).abs().nan_to_num(nan=torch.inf) for a, b in zip(one, other, strict=True) if a.numel()]
    return max((float(pair.max()) for pair in pairs), default=0.0)
