"""What a model is made of, as plain data: blocks of prunable units and what a unit costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch

from .layouts import Layout, Tap
from .projections import Indices, Projection, kept_indices

Kind = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class Block:
    """One sublayer whose units can be removed.

    Attributes:
        kind: "attention" or "feed_forward".
        key: the block's name in plans and reports, independent of the task head ("encoder.layer.0.attention").
        owner: path of the model in whose config the block's metadata is written, from the root ("" for the root).
        local_key: the block's name there.
        stack: path of the list of layers that its layer is in, from the root.
        layer: path of its layer, from the root.
        units: units it has now.
        unit: what a unit is: "heads", "KV groups", "filters", "experts", or "sublayer" where units cannot be told
            apart.
        head_dim: size of one head (0 for a feed-forward block).
        heads_per_unit: query heads that go with one unit (0 in a feed-forward block).
        inputs, output: its projections.
        layout: the table entry it was read from.
        counts: attributes of the layout's core that follow the cut → their value per unit.
        config_counts: entries of the config that the core reads while it runs → their value per unit.
        tables: parameters with an axis of heads, path inside the layer → axis; one row per head of a unit.
        lists: lists of modules with one for each head, as paths inside the layer.
        minimum: units that must stay.
        runs: how often the layer runs in one forward pass (more than once where layers share their weights).
        group: name of the blocks that must keep equal counts, because their weights share one parameter (the experts
            of a layer); None for a block of its own.
        share: the fraction of the tokens that reach the block, on average (experts of `k` chosen per token).
    """

    kind: Kind
    key: str
    owner: str
    local_key: str
    stack: str
    layer: str
    units: int
    unit: Literal["heads", "KV groups", "filters", "experts", "sublayer"]
    head_dim: int
    heads_per_unit: int
    inputs: tuple[Projection, ...]
    output: Projection
    layout: Layout
    counts: Mapping[str, int] = field(default_factory=dict)
    config_counts: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    minimum: int = 0
    runs: int = 1
    group: str | None = None
    share: float = 1.0

    @property
    def name(self) -> str:
        """The block's name inside its layer."""
        return self.layout.name if self.group is None else f"{self.layout.name}.{self.output.expert}"

    @property
    def why_minimum(self) -> str:
        """Why `minimum` units must stay."""
        if self.unit == "experts":
            return "each token is sent to that many experts"
        return "its layer does not work without, or the generation cache reads its length there"

    @property
    def residual(self) -> Tap | None:
        """Where the residual stream is read after this sublayer, if the layer shows it."""
        return self.layout.residual

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Every projection of the block, the output last."""
        return (*self.inputs, self.output)

    @property
    def parameters_per_unit(self) -> int:
        """Parameters that disappear with one unit."""
        return sum(projection.parameters_per_unit for projection in self.projections)

    @cached_property
    def columns(self) -> Indices:
        """The unit that each column of the output projection belongs to."""
        return self.output.owners(self.units, self.units * self.output.width)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values `[..., units]` as `[..., columns]`: each column of the output projection gets its unit's."""
        return values.index_select(-1, torch.from_numpy(self.columns).to(values.device))

    def columns_of(self, units: Sequence[int]) -> torch.Tensor:
        """The output projection's columns that belong to `units`, in ascending order."""
        return torch.from_numpy(kept_indices(self.columns, units))

    def macs_per_unit(self, sequence_length: int) -> int:
        """Multiply-accumulates of one unit for one sequence of `sequence_length` tokens.

        Projections plus, in attention, the scores and the weighted sum (Kwon et al. 2022, their reference count);
        softmax, norms and activations are not counted.
        """
        projected = sequence_length * sum(projection.weights_per_unit for projection in self.projections)
        return self._often(projected + 2 * sequence_length**2 * self.head_dim * self.heads_per_unit)

    def _often(self, operations: int) -> int:
        """Operations of one forward pass, from those of one token that gets here or of one run of the layer."""
        return self.runs * (operations if self.share == 1 else round(operations * self.share))


@dataclass(frozen=True)
class ModelAnatomy:
    """Where a model keeps its heads and filters.

    Attributes:
        model_type: `config.model_type` of the root.
        layers: paths of the layers with something to prune, from the root, in the order of the model's modules. Inside
            a list of layers that is the order in which they run; of several lists it need not be (a CLIP model runs
            its images first).
        blocks: the prunable sublayers, layer by layer. Of a mixture of experts every expert is one, with filters as
            units.
        experts: the same experts seen as the units of one block per layer; to remove whole experts, let
            `with_whole_experts` put these in place of the others.
    """

    model_type: str
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]
    experts: tuple[Block, ...] = ()

    @property
    def attentions(self) -> tuple[Block, ...]:
        """The attention blocks, in order."""
        return tuple(block for block in self.blocks if block.kind == "attention")

    @property
    def feed_forwards(self) -> tuple[Block, ...]:
        """The feed-forward blocks, in order."""
        return tuple(block for block in self.blocks if block.kind == "feed_forward")

    def __getitem__(self, key: str) -> Block:
        for block in self.blocks:
            if block.key == key:
                return block
        raise KeyError(f"no block named {key!r}; the blocks are {', '.join(block.key for block in self.blocks)}")

    def with_whole_experts(self, keys: Collection[str]) -> ModelAnatomy:
        """The same model with whole experts as units in the named layers' mixtures, in place of their filters.

        Args:
            keys: keys of blocks in `experts`, which are the names of the groups that they replace.
        """
        whole = {block.key: block for block in self.experts if block.key in keys}
        # A dictionary keeps each block at its first place: that of the first expert of its group.
        blocks = {id(item): item for item in (whole.get(block.group or "", block) for block in self.blocks)}
        return replace(self, blocks=tuple(blocks.values()))

    def blocks_of_layer(self, layer: str) -> tuple[Block, ...]:
        """The blocks of one layer, in the order in which they run."""
        return tuple(block for block in self.blocks if block.layer == layer)

    def __str__(self) -> str:
        rows = [f"{self.model_type}: {len(self.layers)} layers, {len(self.blocks)} prunable blocks"]
        for block in self.blocks:
            if block.group is not None and block.output.expert:
                continue  # described with the first of its group
            size = f" of {block.head_dim}" if block.head_dim else ""
            rows.append(
                f"  {self._title(block)}: {block.units} {block.unit}{size}, {block.parameters_per_unit:,} parameters"
                f" and {2 * block.macs_per_unit(1):,} FLOPs a token each"
            )
        return "\n".join(rows)

    def _title(self, block: Block) -> str:
        members = sum(other.group == block.group for other in self.blocks) if block.group is not None else 1
        return block.key if members == 1 else f"{block.key} … {members - 1}"
