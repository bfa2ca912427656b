"""The residual mappings of a model: what is added to the residual stream as a whole, and can be left out as a whole."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from ..anatomy import Block, ModelAnatomy
from ..errors import PruningError, UnsupportedModelError

MappingKind = Literal["heads", "attention", "feed_forward", "layer"]


@dataclass(frozen=True)
class ResidualMapping:
    """One place in a model with gates on it.

    Attributes:
        key: the block's key; of a whole layer its path.
        kind: "heads" for what each head (KV group) adds to the output of its sublayer, head_i · W_i; "attention" for
            what all heads of a sublayer add together; "feed_forward" for what a feed-forward sublayer puts out, its
            bias included; "layer" for the difference between what a layer returns and what it is given.
        blocks: the blocks that go with it.
        gates: how many gates it has: one per head, otherwise one.
    """

    key: str
    kind: MappingKind
    blocks: tuple[Block, ...]
    gates: int = 1

    @property
    def name(self) -> str:
        """What it is called in stored states and in errors."""
        return f"{self.key}.{self.kind}"


def residual_mappings(
    anatomy: ModelAnatomy, kinds: Collection[MappingKind] = ("heads", "feed_forward")
) -> tuple[ResidualMapping, ...]:
    """The mappings of some kinds, in the order of the blocks; blocks that have lost all units have none.

    Args:
        anatomy: from `describe_model`, or a part of it.
        kinds: Lin et al. 2020 prune "heads" and "feed_forward" together (Section 3.2), either of them, whole
            "attention" sublayers instead of heads, or each "layer" as one (Section 4.3).

    Raises:
        PruningError: a kind is unknown, two of them overlap, or the model has no such mapping.
        UnsupportedModelError: feed-forward mappings of a mixture of experts.
    """
    _check_kinds(kinds)
    blocks = [block for block in anatomy.blocks if block.units]
    if "layer" in kinds:
        layers = dict.fromkeys(block.layer for block in blocks)
        found = [ResidualMapping(layer, "layer", tuple(b for b in blocks if b.layer == layer)) for layer in layers]
    else:
        found = [mapping for block in blocks for mapping in _mappings_of(block, kinds)]
    if not found:
        raise PruningError(f"The model has no {' or '.join(kinds)} mappings to put gates on.")
    return tuple(found)


def _mappings_of(block: Block, kinds: Collection[MappingKind]) -> list[ResidualMapping]:
    if block.kind == "feed_forward":
        if "feed_forward" in kinds and block.output.expert is not None:
            raise UnsupportedModelError(
                f"{block.key} is a mixture of experts, of which each token sees a few, so there is no output that could"
                " stay below a threshold for a whole batch. Use kinds=('heads',), or name it in exclude_modules."
            )
        return [ResidualMapping(block.key, "feed_forward", (block,))] if "feed_forward" in kinds else []
    if "heads" in kinds:
        return [ResidualMapping(block.key, "heads", (block,), block.units)]
    return [ResidualMapping(block.key, "attention", (block,))] if "attention" in kinds else []


def _check_kinds(kinds: Collection[str]) -> None:
    known = get_args(MappingKind)
    if not kinds or not set(kinds) <= set(known):
        raise PruningError(f"kinds={tuple(kinds)} must be one or more of {', '.join(known)}.")
    if {"heads", "attention"} <= set(kinds) or ("layer" in kinds and len(set(kinds)) > 1):
        raise PruningError(
            f"kinds={tuple(kinds)} overlap: 'attention' holds all heads of a sublayer, and 'layer' everything in it."
        )
