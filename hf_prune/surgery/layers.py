"""Removal of whole layers: the list gets shorter, and what counts layers or knows its place follows.

A layer that is removed is one that hands its hidden states on. So that is also what it does in the masked model with
which the shrunk one is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..anatomy import AttentionLayout, Block, ModelAnatomy, UndoLog
from ..anatomy.position_tables import has_own_bias
from ..anatomy.vocabulary import HEADS, first_number
from ..errors import PruningError
from .layer_counts import Change, StackCut, changes_of_removal
from .plan import PruningPlan


@dataclass(frozen=True)
class LayerRemoval:
    """What has to be set so that layers are gone.

    Attributes:
        lists: the shortened content of each list of layers.
        changes: (module or config, attribute, value) for what counts layers or knows its place.
    """

    lists: tuple[tuple[nn.Module, dict[str, nn.Module]], ...] = ()
    changes: tuple[Change, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> LayerRemoval:
        """Works out a plan's removal of layers; the model is not changed.

        Raises:
            PruningError: the config cannot say that the layers are gone, the cache needs a head of a layer that would
                become the first, or position biases would be read back otherwise than they are.
        """
        if not plan.removed_layers:
            return cls()
        _check_cache(model, anatomy, plan)
        _check_tables(model, anatomy, plan)
        cuts = tuple(_stack_cuts(model, anatomy, plan))
        changes = changes_of_removal(model, cuts)
        lists = []
        for cut in cuts:
            modules = model.get_submodule(cut.path)
            lists.append((modules, {str(new): modules.get_submodule(str(old)) for new, old in enumerate(cut.kept)}))
        return cls(tuple(lists), tuple(changes))

    def apply(self, log: UndoLog) -> None:
        """Removes the layers."""
        for holder, name, value in self.changes:
            log.set(holder, name, value)
        for modules, kept in self.lists:
            log.set(modules, "_modules", kept)  # the list stays the same object, for whoever holds it


def layer_index(block: Block) -> int:
    """The place of a block's layer in its list."""
    return int(block.layer.removeprefix(f"{block.stack}."))


def removed_indices(anatomy: ModelAnatomy, plan: PruningPlan) -> dict[str, set[int]]:
    """The places of the layers that go, by the path of their list."""
    removed: dict[str, set[int]] = {}
    for block in anatomy.blocks:
        if plan.removes(block):
            removed.setdefault(block.stack, set()).add(layer_index(block))
    return removed


def _stack_cuts(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> Iterator[StackCut]:
    owners = {block.stack: block.owner for block in anatomy.blocks}
    for stack, removed in removed_indices(anatomy, plan).items():
        total = len(list(model.get_submodule(stack).children()))
        kept = tuple(index for index in range(total) if index not in removed)
        yield StackCut(stack, owners[stack], kept, total)


def _check_cache(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> None:
    """The first layer that stays, of every kind that the generation cache tells apart, needs a head where it had."""
    removed = removed_indices(anatomy, plan)
    for stack in removed:
        needing = [
            block
            for block in anatomy.attentions
            if block.stack == stack and isinstance(block.layout, AttentionLayout) and block.layout.cached
        ]
        if not any(block.minimum for block in needing):
            continue
        types = _layer_types(model, stack)
        seen: set[Any] = set()
        for block in needing:
            if plan.removes(block):
                continue
            layer_type = types.get(layer_index(block))
            if layer_type not in seen and not plan.count(block):
                raise PruningError(
                    f"{block.key} would come first once layers are removed, so it has to keep a unit (the generation"
                    " cache reads its length there)."
                )
            seen.add(layer_type)


def _check_tables(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> None:
    """Layers have position biases of their own only where some layer has lost heads, and are read back accordingly."""
    for stack in removed_indices(anatomy, plan):
        sharing = [block for block in anatomy.attentions if block.stack == stack and _shares_bias(block)]
        if not any(has_own_bias(model.get_submodule(block.layer).get_submodule(_core(block))) for block in sharing):
            continue
        dense = first_number(_config_of(model, stack), HEADS)
        if all(plan.count(block) == dense for block in sharing if not plan.removes(block)):
            raise PruningError(
                f"All layers of {stack} that have lost heads would be removed, but the others were given position"
                " biases of their own for their sake. Keep one of them, or prune the dense model anew."
            )


def _shares_bias(block: Block) -> bool:
    return isinstance(block.layout, AttentionLayout) and block.layout.shared_bias


def _core(block: Block) -> str:
    assert isinstance(block.layout, AttentionLayout)
    return block.layout.core


def _layer_types(model: nn.Module, stack: str) -> dict[int, Any]:
    types = getattr(_config_of(model, stack), "layer_types", None)
    return dict(enumerate(types)) if isinstance(types, (list, tuple)) else {}


def _config_of(model: nn.Module, path: str) -> Any:
    """The config of the innermost model around a list of layers."""
    names = [".".join(path.split(".")[:end]) for end in range(path.count(".") + 1)]
    holders = [model.get_submodule(name) for name in names]
    return next(holder.config for holder in reversed(holders) if isinstance(holder, PreTrainedModel))


@contextmanager
def layers_passed_over(model: nn.Module, anatomy: ModelAnatomy, plan: PruningPlan) -> Iterator[None]:
    """Lets the layers that a plan removes hand on the hidden states that they are given, within the context."""

    def hand_on(_: str, hidden: Any, output: Any) -> Any:
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    removed = dict.fromkeys(block.layer for block in anatomy.blocks if plan.removes(block))
    with layers_watched(model, tuple(removed), hand_on):
        yield


@contextmanager
def layers_watched(model: nn.Module, layers: Sequence[str], watch: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Calls `watch` with a layer's path, its hidden states and its output after every call, within the context.

    What `watch` returns takes the place of the output, unless it is None.
    """

    def hook(layer: str) -> Any:
        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return watch(layer, args[0] if args else kwargs["hidden_states"], output)

        return after

    with ExitStack() as stack:
        for layer in layers:
            handle = model.get_submodule(layer).register_forward_hook(hook(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield
