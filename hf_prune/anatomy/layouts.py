"""How a Transformer layer is laid out: the vocabulary of the family table.

A layout names modules by their path inside one layer and says which axis of their weight belongs to the prunable
units (heads or filters). Everything else (gates, costs, surgery, recovery) is derived from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Tap:
    """A place in a layer where the residual stream can be read after a sublayer has been added to it.

    `module` is a path inside the layer ("" is the layer itself); `side` says whether its input or its output is it.
    """

    module: str
    side: Literal["input", "output"] = "input"


@dataclass(frozen=True)
class AttentionLayout:
    """One attention sublayer with separate query, key, value and output projections.

    Attributes:
        name: path of the sublayer inside the layer; with the layer's path it is the block's key in plans and metadata.
        core: the module that splits its projections into heads; its `forward` is bypassed once no head is left.
        query, key, value, output: paths of the projections (`nn.Linear`).
        head_dim: attribute of `core` that holds the size of one head.
        counts: attributes of `core` to keep in step with the cut, each "heads" (a number of heads) or "width"
            (heads × head size).
        residual: where the stream is read after this sublayer.
        cached: whether its keys go into the cache from which a decoder reads how far it has got.
    """

    name: str
    core: str
    query: str
    key: str
    value: str
    output: str
    residual: Tap
    head_dim: str = "attention_head_size"
    counts: dict[str, Literal["heads", "width"]] = field(default_factory=dict)
    cached: bool = True


@dataclass(frozen=True)
class FeedForwardLayout:
    """One feed-forward sublayer: `inputs` make the filters (one projection, or two in a GLU), `output` reads them."""

    name: str
    inputs: tuple[str, ...]
    output: str
    residual: Tap


@dataclass(frozen=True)
class Family:
    """Model types that share one layer layout.

    Attributes:
        model_types: values of `config.model_type`.
        layers: path of the list of layers inside the model that holds them (`BertModel`, `DistilBertModel` …).
        sublayers: the layouts in the order in which the layer runs them; one that a layer lacks is skipped
            (cross-attention exists in decoders only).
    """

    model_types: tuple[str, ...]
    layers: str
    sublayers: tuple[AttentionLayout | FeedForwardLayout, ...]
