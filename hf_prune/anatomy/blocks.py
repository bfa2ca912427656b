"""What a model is made of, as plain data: blocks of prunable units, their projections and what a unit costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from .layouts import AttentionLayout, FeedForwardLayout, Tap

Kind = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class Projection:
    """One linear map that belongs to a block.

    Attributes:
        path: path inside the layer.
        axis: 0 where units are rows of the weight (they are produced here), 1 where they are columns (read here).
        width: consecutive rows or columns per unit.
        other: size of the axis that is not cut.
        bias: whether there is a bias.
    """

    path: str
    axis: Literal[0, 1]
    width: int
    other: int
    bias: bool

    @property
    def weights_per_unit(self) -> int:
        """Weight entries that belong to one unit, the bias not counted."""
        return self.width * self.other

    @property
    def parameters_per_unit(self) -> int:
        """Parameters that disappear with one unit (an output projection keeps its bias)."""
        return self.weights_per_unit + (self.width if self.bias and self.axis == 0 else 0)


@dataclass(frozen=True)
class Block:
    """One sublayer whose units (heads, or KV groups with their heads; or filters) can be removed.

    Attributes:
        kind: "attention" or "feed_forward".
        key: the block's name in plans and reports, independent of the task head ("encoder.layer.0.attention").
        holder: path of the model that holds the layers, from the root ("bert"; "" for the root itself).
        layer: path of its layer, from the root.
        units: units it has now.
        head_dim: size of one head (0 for a feed-forward block).
        heads_per_unit: query heads that go with one unit (more than 1 in grouped-query attention, 0 in a
            feed-forward block).
        inputs, output: its projections.
        layout: the table entry it was read from.
        minimum: units that must stay.
    """

    kind: Kind
    key: str
    holder: str
    layer: str
    units: int
    head_dim: int
    heads_per_unit: int
    inputs: tuple[Projection, ...]
    output: Projection
    layout: AttentionLayout | FeedForwardLayout
    minimum: int = 0

    @property
    def local_key(self) -> str:
        """The block's name inside the model that holds it: its name in that model's config."""
        path = f"{self.layer}.{self.layout.name}"
        return path.removeprefix(f"{self.holder}.") if self.holder else path

    @property
    def residual(self) -> Tap:
        """Where the residual stream is read after this sublayer."""
        return self.layout.residual

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Every projection of the block, the output last."""
        return (*self.inputs, self.output)

    @property
    def parameters_per_unit(self) -> int:
        """Parameters that disappear with one unit."""
        return sum(projection.parameters_per_unit for projection in self.projections)

    def macs_per_unit(self, sequence_length: int) -> int:
        """Multiply-accumulates of one unit for one sequence of `sequence_length` tokens.

        Projections plus, in attention, the scores and the weighted sum (Kwon et al. 2022, their reference count);
        softmax, norms and activations are not counted.
        """
        projected = sequence_length * sum(projection.weights_per_unit for projection in self.projections)
        return projected + 2 * sequence_length**2 * self.head_dim * self.heads_per_unit


@dataclass(frozen=True)
class ModelAnatomy:
    """Where a model keeps its heads and filters.

    Attributes:
        model_type: `config.model_type` of the root.
        layers: paths of the layers, from the root, in the order in which they run.
        blocks: the prunable sublayers, in the order in which they run.
    """

    model_type: str
    layers: tuple[str, ...]
    blocks: tuple[Block, ...]

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

    def blocks_of_layer(self, layer: str) -> tuple[Block, ...]:
        """The blocks of one layer, in the order in which they run."""
        return tuple(block for block in self.blocks if block.layer == layer)

    def __str__(self) -> str:
        rows = [f"{self.model_type}: {len(self.layers)} layers, {len(self.blocks)} prunable blocks"]
        for block in self.blocks:
            units = "filters" if block.kind == "feed_forward" else "heads" if block.heads_per_unit == 1 else "KV groups"
            size = f" of {block.head_dim}" if block.head_dim else ""
            rows.append(
                f"  {block.key}: {block.units} {units}{size}, {block.parameters_per_unit:,} parameters"
                f" and {2 * block.macs_per_unit(1):,} FLOPs a token each"
            )
        return "\n".join(rows)


def linear_at(layer: nn.Module, projection: Projection) -> nn.Linear:
    """The projection's module inside `layer` (the layer itself or a copy of it)."""
    module = layer.get_submodule(projection.path)
    assert isinstance(module, nn.Linear)  # checked when the anatomy was read
    return module
