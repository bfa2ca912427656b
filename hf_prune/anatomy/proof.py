"""Proof that blocks found by their names are what they seem: masked and cut, they must give the same outputs.

Whether two outputs agree says little about a freshly initialised model: its attention is almost uniform and its biases
are zero, so that wrong rows of a key projection, or of a bias, hardly show. Every block is therefore judged on a copy
of its layer whose weights are rescaled until each of them matters, and on random hidden states. That the layers still
fit together, with what the model computes for all of them (position biases, masks), is seen on the whole model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..offloading import is_offloaded
from .blocks import Block, ModelAnatomy
from .cut_together import cut_model
from .example_inputs import example_batch
from .example_media import Batch
from .holders import holder_of
from .layer_trial import Call, LayerTrial, differ, mask_layer, outputs_of, recorded_calls
from .position_tables import give_own_tables
from .undisturbed import undisturbed
from .undo import UndoLog

# Largest accepted difference between the masked and the cut model, relative to what the mask changes, and to the
# largest output: half precision rounds much.
AGREEMENT = {torch.float64: (1e-6, 1e-9), torch.float32: (1e-2, 1e-5)}
HALF_AGREEMENT = (0.3, 2e-2)

Result = TypeVar("Result")


def prove(model: PreTrainedModel, anatomy: ModelAnatomy, model_types: Sequence[str]) -> ModelAnatomy:
    """Removes units on an example batch, once by masking and once by cutting, block by block and all together.

    The model is as it was afterwards. Models without weights (on the meta device) are believed: they are about to be
    loaded with sizes that were proved when they were cut.

    Args:
        model: any transformers model.
        anatomy: what was found in it.
        model_types: the types, of the model or of models inside it, that the family table lacks.

    Returns:
        The anatomy; blocks that the modelling code needs at least one unit of have that as their minimum. Whole
        experts of an unknown type are left out: the choice of another expert cannot be compared with a mask.

    Raises:
        UnsupportedModelError: the outputs differ, the cut model does not run, or no example reaches a block.
    """
    if any(parameter.is_meta for parameter in model.parameters()) and not is_offloaded(model):
        return anatomy
    try:
        batch = example_batch(model)
        with undisturbed(model), torch.no_grad():
            before = list(model.modules())
            calls, dense = _cautiously(lambda: recorded_calls(model, anatomy.layers, batch), "the model")
            if list(model.modules()) != before:
                raise _Doubt("the model exchanges modules while it runs, and new ones would not be cut.")
            proved: list[Block] = []
            for members in _tried_together(anatomy.blocks):
                known = _holder_type(model, members[0]) not in model_types
                proved += members if known else _proved(model, members, calls)
            experts = tuple(block for block in anatomy.experts if _holder_type(model, block) not in model_types)
            found = replace(anatomy, blocks=tuple(proved), experts=experts)
            _prove_together(model, found, batch, dense)
    except _Doubt as doubt:
        raise UnsupportedModelError(_refusal(model_types, str(doubt))) from doubt
    except UnsupportedModelError as error:
        raise UnsupportedModelError(_refusal(model_types, f"this could not be proved. {error}")) from error
    return found


class _Doubt(Exception):
    """Why a block is not what it seems."""


def _refusal(model_types: Sequence[str], reason: str) -> str:
    names = ", ".join(repr(name) for name in model_types)
    return (
        f"Models of type {names} are not in the family table. Their layers look familiar, but {reason} Describe them"
        " in hf_prune/anatomy/families.py (CONTRIBUTING.md, 'Adding a model family')."
    )


def _holder_type(model: PreTrainedModel, block: Block) -> str | None:
    """The type of the innermost model around a block."""
    return getattr(holder_of(model, block.stack).config, "model_type", None)


def _tried_together(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Each block by itself, the experts of a layer together."""
    for _, members in groupby(blocks, key=lambda block: block.group or block.key):
        yield list(members)


def _proved(model: PreTrainedModel, members: list[Block], calls: Mapping[str, Call]) -> list[Block]:
    """The blocks, with a minimum of one unit where their layer does not work without any."""
    first = members[0]
    if first.units <= first.minimum:
        return members
    if first.layer not in calls:
        raise _Doubt(f"the example batch never reaches {first.layer}, so nothing can be proved about it.")
    layer = model.get_submodule(first.layer)
    trial = _cautiously(lambda: LayerTrial(layer, members, calls[first.layer]), f"{first.layer} alone")
    if _half(first):
        _check(trial, [_half(block) for block in members])
    if first.minimum or not _fails(trial, members):
        return members
    return [replace(block, minimum=1) for block in members]


def _fails(trial: LayerTrial, members: Sequence[Block]) -> bool:
    """Whether the layer does not work without any of the blocks' units."""
    try:
        _check(trial, [()] * len(members))
    except _Doubt:
        return True
    return False


def _check(trial: LayerTrial, kept: Sequence[Sequence[int]]) -> None:
    effect, difference, size = _cautiously(lambda: trial.compare(kept), f"with units of {trial.key} cut off, its layer")
    if not effect > LayerTrial.VISIBLE * size:
        raise _Doubt(f"removing units of {trial.key} changes its layer's output by no more than {effect:.3g}.")
    if not difference <= LayerTrial.AGREEMENT * effect:
        raise _Doubt(
            f"in {trial.key} cutting differs from masking by {difference:.3g}, where the mask changes the layer's"
            f" output by {effect:.3g}."
        )


def _cautiously(run: Callable[[], Result], what: str) -> Result:
    """Runs modelling code: it fails in as many ways as there is modelling code."""
    try:
        return run()
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _Doubt(f"{what} does not run ({message}).") from error


def _half(block: Block) -> tuple[int, ...]:
    """About half of the units, always the same ones, but others in each block, and more in some blocks.

    Otherwise layers that take over keys from others (Gemma 3n) would fit each other by chance.
    """
    seed = zlib.crc32(block.key.encode())
    more = zlib.crc32((block.group or block.key).encode()) % 2 if block.units > 2 else 0
    keep = max(block.minimum, block.units // 2 + more)
    order = torch.randperm(block.units, generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(sorted(order[:keep]))


def _prove_together(model: PreTrainedModel, anatomy: ModelAnatomy, batch: Batch, dense: list[torch.Tensor]) -> None:
    """All blocks at once, with the model's own weights."""
    kept = {block.key: _half(block) for block in anatomy.blocks}

    def outputs(cut: bool) -> list[torch.Tensor]:
        log = UndoLog()
        try:
            if cut:
                give_own_tables(model, anatomy.blocks, set(kept), log)
                cut_model(model, anatomy.blocks, kept, log)
            else:
                for path in anatomy.layers:
                    mask_layer(model.get_submodule(path), anatomy.blocks_of_layer(path), kept, log)
            return outputs_of(model, batch)
        finally:
            log.roll_back()

    masked = outputs(cut=False)
    shrunk = _cautiously(lambda: outputs(cut=True), "with units cut off, the model")
    effect, difference = differ(dense, masked), differ(masked, shrunk)
    size = max((float(value.abs().max()) for value in masked if value.numel()), default=0.0)
    relative, rounding = AGREEMENT.get(model.dtype, HALF_AGREEMENT)
    if not effect > 0 or not difference <= relative * effect + rounding * size:
        raise _Doubt(
            f"cutting differs from masking by {difference:.3g}, where the mask changes the model's outputs by"
            f" {effect:.3g}."
        )
