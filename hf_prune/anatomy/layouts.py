"""How a Transformer layer is laid out: the vocabulary of the family table.

A layout names modules by their path inside one layer and says what their rows are made of. Everything else (sizes,
gates, costs, surgery, recovery) is derived from it and from the modules themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What a projection makes. Fused ones are named by their order:
# "query+key+value" is all queries, then all keys, then all values; "groups" repeats [queries, key, value] for each KV
# group; "key+value" is all keys, then all values; "slices" is CodeGen's: four slices of [queries, values, keys].
Makes = Literal["query", "key", "value", "query+key+value", "key+value", "groups", "slices"]


@dataclass(frozen=True)
class Tap:
    """A place in a layer where the residual stream can be read after a sublayer has been added to it.

    `module` is a path inside the layer ("" is the layer itself); `side` says whether its input or its output is it.
    """

    module: str
    side: Literal["input", "output"] = "input"


@dataclass(frozen=True)
class AttentionLayout:
    """One attention sublayer.

    Attributes:
        name: path of the sublayer inside the layer; with the layer's path it is the block's key in plans and metadata.
        core: the module that splits its projections into heads; its `forward` is bypassed once no head is left.
        inputs: what each input projection makes, by path.
        output: path of the projection that reads the heads.
        optional: further input projections that some models have, by path (DeBERTa's positions).
        residual: where the stream is read after this sublayer, in layers that normalise after the sum; None where the
            sum is nowhere to be seen.
        cached: whether its keys go into the cache from which a decoder reads how far it has got.
        tables: parameters with an axis of heads (learned position biases), path inside the layer → axis.
        arguments: arguments of the core's `forward` with an axis of heads (position biases, ALiBi) → axis; "rows" for
            a first axis of batch × heads (where the two are apart, the second one is meant).
        shared_bias: whether the first layer's position bias is handed on to the others, see `position_tables.py`.
        returns: how many values the core's `forward` returns, which its bypass has to match; 0 for a plain tensor,
            None where it cannot be bypassed and so keeps a unit.
        per_config: sizes that the modelling code reads from the config while it runs → "heads" or "kv".
    """

    name: str
    core: str
    inputs: Mapping[str, Makes]
    output: str
    optional: Mapping[str, Makes] = field(default_factory=dict)
    residual: Tap | None = None
    cached: bool = True
    tables: Mapping[str, int] = field(default_factory=dict)
    arguments: Mapping[str, int | Literal["rows"]] = field(default_factory=dict)
    shared_bias: bool = False
    returns: int | None = 2
    per_config: Mapping[str, Literal["heads", "kv"]] = field(default_factory=dict)


@dataclass(frozen=True)
class FeedForwardLayout:
    """One feed-forward sublayer: `inputs` make the filters, `output` reads them.

    Attributes:
        name: as in `AttentionLayout`.
        inputs: one projection, two in a GLU, or one that makes gates and values of a GLU.
        output: path of the projection that reads the filters.
        residual: as in `AttentionLayout`.
        fused: whether one input projection makes a GLU's two halves, one after the other.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    residual: Tap | None = None
    fused: bool = False


@dataclass(frozen=True)
class ExpertsLayout:
    """A mixture of experts whose weights are parameters with an axis of experts; each expert is a block of filters.

    How an expert computes (gated or not, biases, which way the weights are stored) is read from the module itself:
    transformers marks every such module for its `experts_implementation`.

    Attributes:
        name: path of the module that holds the experts' weights.
        router: path of the module that chooses the experts of each token.
        residual: as in `AttentionLayout`.
    """

    name: str
    router: str
    residual: Tap | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The parameter that makes the filters, by its usual name."""
        return (f"{self.name}.gate_up_proj",)

    @property
    def output(self) -> str:
        """The parameter that reads the filters."""
        return f"{self.name}.down_proj"


Layout = AttentionLayout | FeedForwardLayout | ExpertsLayout


@dataclass(frozen=True)
class Family:
    """Model types whose layers are laid out alike.

    Attributes:
        model_types: values of `config.model_type`.
        sublayers: the layouts in the order in which a layer runs them; those that a layer lacks are skipped
            (cross-attention exists in decoders only).
    """

    model_types: tuple[str, ...]
    sublayers: tuple[Layout, ...]
