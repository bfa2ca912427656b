"""Which blocks of a model a configuration lets a search prune, what restricts it there, and what it has chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd

import torch

from ..anatomy import Block, ModelAnatomy, groups_of
from ..config import PruningConfig, StructuredPruningConfig
from ..errors import PruningError
from .search import SearchOptions, SearchResult


@dataclass
class Selection:
    """Which units stay.

    Attributes:
        masks: one bool mask per block, by key.
        notes: what a reader of the report should know about the search.
    """

    masks: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlanSoFar:
    """A choice that keeps to the budget, of which a part is to stay.

    Attributes:
        masks: one bool mask per block, by key.
        decided: keys of the blocks whose masks stay.
    """

    masks: Mapping[str, torch.Tensor]
    decided: Collection[str]


@dataclass(frozen=True)
class Targets:
    """The blocks that may be pruned, split by kind, with their scores, and the masks of all others."""

    heads: tuple[Block, ...]
    filters: tuple[Block, ...]
    head_scores: list[torch.Tensor]
    filter_scores: list[torch.Tensor]
    fixed: tuple[Block, ...]
    fixed_masks: Mapping[str, torch.Tensor]

    @classmethod
    def of(
        cls,
        anatomy: ModelAnatomy,
        scores: Mapping[str, torch.Tensor],
        config: StructuredPruningConfig,
        so_far: PlanSoFar | None = None,
    ) -> Targets:
        wanted = wanted_keys(anatomy, config)
        _check_experts(anatomy, wanted, config.budget[0])
        masks = {block.key: torch.ones(block.units, dtype=torch.bool) for block in anatomy.blocks}
        if so_far is not None:
            wanted -= set(so_far.decided)
            masks |= so_far.masks
        heads = tuple(block for block in anatomy.attentions if block.key in wanted)
        filters = tuple(block for block in anatomy.feed_forwards if block.key in wanted)
        return cls(
            heads,
            filters,
            [scores[block.key].cpu() for block in heads],
            [scores[block.key].cpu() for block in filters],
            tuple(block for block in anatomy.blocks if block.key not in wanted),
            {key: mask for key, mask in masks.items() if key not in wanted},
        )

    def options(self, config: StructuredPruningConfig) -> SearchOptions:
        """The search's restrictions: rounding, uniformity and what must stay."""
        return SearchOptions(
            head_multiple=_units_multiple(config.round_to, self.heads),
            filter_multiple=self._filter_multiples(config.round_to),
            filter_groups=[block.group for block in self.filters],
            uniform=config.uniform,
            minimum_heads=[block.minimum for block in self.heads],
            minimum_filters=[block.minimum for block in self.filters],
        )

    def _filter_multiples(self, round_to: int) -> list[int]:
        """Filters are kept in multiples that make a rounded width; whole experts one by one."""
        filters = _units_multiple(round_to, [block for block in self.filters if block.unit != "experts"])
        return [1 if block.unit == "experts" else filters for block in self.filters]

    def fixed_units(self, block: Block) -> int:
        """How many units one of the fixed blocks keeps."""
        return int(self.fixed_masks[block.key].sum())

    def selection(self, result: SearchResult) -> Selection:
        """What a search has chosen, with the masks of the fixed blocks."""
        masks = dict(self.fixed_masks)
        masks |= {block.key: mask for block, mask in zip(self.heads, result.head_masks, strict=True)}
        masks |= {block.key: mask for block, mask in zip(self.filters, result.filter_masks, strict=True)}
        return Selection(masks, _gap_note(result))


def _gap_note(result: SearchResult) -> list[str]:
    total = result.upper_bound
    if total <= 0 or result.gap <= 1e-9 * total:
        return []
    return [f"The kept score is within {result.gap / total:.2%} of the best possible under this budget."]


def _check_experts(anatomy: ModelAnatomy, wanted: Collection[str], budget: str) -> None:
    """Experts of a layer are pruned together, and whole experts under a budget of parameters."""
    for members in groups_of(anatomy.blocks):
        named = sum(member.key in wanted for member in members)
        if 0 < named < len(members):
            raise PruningError(
                f"{members[0].group}: only {named} of {len(members)} experts may be pruned by target_modules and"
                " exclude_modules, but all experts of a layer keep the same number of filters. Name all or none."
            )
    whole = [block.key for block in anatomy.blocks if block.unit == "experts" and block.key in wanted]
    if whole and budget != "params":
        raise PruningError(
            f"{whole[0]}: each token goes to the same number of experts whether or not others are removed, so whole"
            f" experts cannot be chosen by {budget}. Give params=…, or prune their filters: leave"
            " target_modules out."
        )


def _units_multiple(round_to: int, blocks: Sequence[Block]) -> int:
    """How many units make a width that is a multiple of `round_to` columns."""
    widths = {block.output.width for block in blocks} or {1}
    return max(round_to // gcd(round_to, width) for width in widths)


def in_wanted_units(anatomy: ModelAnatomy, config: PruningConfig) -> ModelAnatomy:
    """The anatomy with whole experts as units where `target_modules` names mixtures of experts by their own names.

    "experts" names them; "experts.0", or a pattern that single experts match as well, names the filters of experts.

    Raises:
        PruningError: a pattern in `target_modules` or `exclude_modules` that matches nothing, or whole experts that
            their router cannot do without.
    """
    wanted = config.targets(block_names(anatomy))
    if config.target_modules is None:
        return anatomy
    by_filters = {block.group for block in anatomy.blocks if block.key in wanted}
    whole = _groups(anatomy) & wanted - by_filters
    fixed = whole - {block.key for block in anatomy.experts}
    if fixed:
        raise PruningError(
            f"Whole experts cannot be removed from {', '.join(sorted(fixed))}: their router does more than choose by"
            " one row of weights per expert. Prune their filters: leave target_modules out."
        )
    return anatomy.with_whole_experts(whole)


def wanted_keys(anatomy: ModelAnatomy, config: PruningConfig) -> set[str]:
    """Keys of the blocks that may be pruned; a mixture of experts may be excluded by its own name.

    A sublayer whose units cannot be told apart is a candidate only where it is named: one score for all of it says
    little (where a norm follows it, its gate has a gradient of zero), and it would be gone altogether.
    """
    if config.target_modules is not None:
        wanted = config.targets(block_names(anatomy))
        return {block.key for block in anatomy.blocks if block.key in wanted}
    left = keys_left(anatomy, config)
    return {block.key for block in anatomy.blocks if block.key in left and block.unit != "sublayer"}


def keys_left(anatomy: ModelAnatomy, config: PruningConfig) -> set[str]:
    """Keys of the blocks that `target_modules` and `exclude_modules` leave, and the groups that they are in as well.

    Raises:
        PruningError: a pattern in them that matches nothing.
    """
    wanted = config.targets(block_names(anatomy))
    return {block.key for block in anatomy.blocks if block.key in wanted and block.group in (None, *wanted)}


def block_names(anatomy: ModelAnatomy) -> list[str]:
    """What a configuration may name: blocks, and groups of them."""
    return [*(block.key for block in anatomy.blocks), *sorted(_groups(anatomy))]


def _groups(anatomy: ModelAnatomy) -> set[str]:
    return {block.group for block in anatomy.blocks if block.group is not None}
