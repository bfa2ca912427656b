"""What a model costs in FLOPs and parameters, counted over its prunable units."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..anatomy import AttentionLayout, Block, ModelAnatomy, Projection, describe_model
from ..errors import PruningError
from .block_lengths import BlockLength
from .lengths import Lengths, lengths_of


def count_flops(model: PreTrainedModel, sequence_length: int = 128, *, generated_tokens: int = 0) -> int:
    """Floating-point operations of attention and FFN for one example.

    A multiply-accumulate counts as two operations. Projections, attention scores and the weighted sum are counted;
    embeddings, norms, softmax, activations and the task head are not (as in Kwon et al. 2022, whose tables count
    multiply-accumulates).

    Args:
        model: a supported model, dense or pruned. One that reads more than text is run once on an example.
        sequence_length: tokens of the text, encoder's and decoder's; images and sound have the size that the config
            gives.
        generated_tokens: tokens generated after that, each of them attending to all before it from a cache. With an
            encoder, the decoder then starts from one token instead of `sequence_length`.

    Raises:
        PruningError: a number is too small, or the model does not generate.
    """
    if sequence_length < 1:
        raise PruningError(f"sequence_length={sequence_length} must be at least 1.")
    if generated_tokens < 0:
        raise PruningError(f"generated_tokens={generated_tokens} must be at least 0.")
    anatomy = describe_model(model)
    lengths = lengths_of(model, anatomy, sequence_length, 1 if generated_tokens else None)
    if generated_tokens and not lengths.generating:
        raise PruningError(f"{type(model).__name__} does not generate: leave generated_tokens at 0.")
    steps = range(1, generated_tokens + 1)
    blocks = [block for block in anatomy.blocks if block.stack in lengths.generating]
    generation = sum(
        block.units * generation_flops_per_unit(block, lengths, step) for block in blocks for step in steps
    )
    return total_flops(anatomy, lengths) + generation


def total_flops(anatomy: ModelAnatomy, lengths: int | Lengths) -> int:
    """FLOPs of all units of all blocks for one example; a number as `lengths` is what every block sees."""
    return sum(block.units * flops_per_unit(block, lengths) for block in anatomy.blocks)


def flops_per_unit(block: Block, lengths: int | Lengths) -> int:
    """FLOPs of one head (KV group) or filter for one example; a number as `lengths` is what every block sees."""
    return 2 * _macs(block, lengths.of(block) if isinstance(lengths, Lengths) else BlockLength.same(lengths))


def generation_flops_per_unit(block: Block, lengths: int | Lengths, step: int = 1) -> int:
    """FLOPs of one unit for the `step`-th generated token; 0 in a block that is not known to run then.

    Cross-attention keeps the keys and values that it made of the encoder's outputs.
    """
    if isinstance(lengths, int) or block.stack not in lengths.generating:
        return 0
    length = lengths.of(block)
    if length.cross:
        return 2 * _macs(block, BlockLength(1, 0, length.context, True))
    return 2 * _macs(block, BlockLength(1, 1, length.queries + step))


def total_unit_parameters(anatomy: ModelAnatomy) -> int:
    """Parameters of all units of all blocks."""
    return sum(block.units * block.parameters_per_unit for block in anatomy.blocks)


def _macs(block: Block, length: BlockLength) -> int:
    """Multiply-accumulates of one unit: projections, and in attention the scores and the weighted sum."""
    projected = sum(
        projection.weights_per_unit * (length.keys if _reads_keys(block, projection) else length.queries)
        for projection in block.projections
    )
    attended = 2 * length.queries * length.context * block.head_dim * block.heads_per_unit
    return block.runs * round((projected + attended) * block.share)


def _reads_keys(block: Block, projection: Projection) -> bool:
    if not isinstance(block.layout, AttentionLayout):
        return False
    return block.layout.inputs.get(projection.path) in ("key", "value", "key+value")
