"""The removal of whole layers: how many of each list go, whichever a strategy chooses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..anatomy import ModelAnatomy
from ..budget import Lengths, kept_layer_count
from ..budget.targets import keys_left
from ..count_budgets import LayerBudgetConfig
from ..errors import InfeasibleBudgetError, PruningError
from ..report.clock import StageClock
from ..surgery import PruningPlan
from ..surgery.plan import layer_key
from .base import Cut

# From the names of layers, in order, and how many go, the places of those that go.
LayerChoice = Callable[[Sequence[str], int], Collection[int]]


def cut_layers(
    anatomy: ModelAnatomy, config: LayerBudgetConfig, clock: StageClock, lengths: int | Lengths, choose: LayerChoice
) -> Cut:
    """Decides which layers go; every list of layers (encoder and decoder) keeps the number asked for.

    Layers are counted over those that `target_modules` and `exclude_modules` leave, and chosen among those of them that
    can go: the first layer of a T5, whose position biases all others use, stays.

    Args:
        anatomy: of the model.
        config: how many layers to keep, and of which.
        clock: gets the time that this takes.
        lengths: tokens that costs are counted for.
        choose: gets the names of the layers that can go.

    Raises:
        PruningError: there is no layer to remove, or not enough.
    """
    assert config.layers is not None  # strategies check that layers= is given
    removed: list[str] = []
    with clock("search"):
        for names in _layers_by_list(anatomy, config):
            count = len(names) - kept_layer_count(len(names), config.layers)
            free = _free_layers(anatomy, names, count, config.layers)
            removed += [free[place] for place in choose(free, count)] if count else []
    return Cut(PruningPlan({}, tuple(removed)), lengths)


def _layers_by_list(anatomy: ModelAnatomy, config: LayerBudgetConfig) -> list[list[str]]:
    """The names of the layers that may be pruned as a whole, list by list."""
    left = keys_left(anatomy, config)
    lists: dict[str, list[str]] = {}
    for path in anatomy.layers:
        blocks = anatomy.blocks_of_layer(path)
        if blocks and all(block.key in left for block in blocks):
            lists.setdefault(blocks[0].stack, []).append(layer_key(blocks[0]))
    if not lists:
        raise PruningError(
            "layers= has no layers to choose from: target_modules and exclude_modules leave no layer whole. Name all"
            " blocks of a layer, with a regular expression for instance: '.*layer[.][0-5][.].*'."
        )
    return list(lists.values())


def _free_layers(anatomy: ModelAnatomy, names: Sequence[str], count: int, layers: float) -> list[str]:
    """Those of the layers that can go, whatever becomes of the others; `count` of them at least are needed."""
    free, reason = [], ""
    for name in names:
        try:
            PruningPlan({}, (name,)).validate(anatomy)
            free.append(name)
        except PruningError as error:
            reason = reason or str(error)
    if count > len(free):
        fixed = len(names) - len(free)
        raise InfeasibleBudgetError(
            f"layers={layers:g} is out of reach: only {len(free)} of {len(names)} layers can go. {reason}",
            fixed if isinstance(layers, int) else fixed / len(names),
        )
    return free
