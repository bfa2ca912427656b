"""What a model costs in FLOPs and parameters, counted over its prunable units."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy, describe_model
from ..errors import PruningError


def count_flops(model: PreTrainedModel, sequence_length: int = 128) -> int:
    """Floating-point operations of attention and FFN for one sequence.

    A multiply-accumulate counts as two operations. Projections, attention scores and the weighted sum are counted;
    embeddings, norms, softmax, activations and the task head are not (as in Kwon et al. 2022, whose tables count
    multiply-accumulates).

    Args:
        model: a supported model, dense or pruned.
        sequence_length: tokens in the sequence.
    """
    if sequence_length < 1:
        raise PruningError(f"sequence_length={sequence_length} must be at least 1.")
    return total_flops(describe_model(model), sequence_length)


def total_flops(anatomy: ModelAnatomy, sequence_length: int) -> int:
    """FLOPs of all units of all blocks for one sequence."""
    return sum(block.units * flops_per_unit(block, sequence_length) for block in anatomy.blocks)


def flops_per_unit(block: Block, sequence_length: int) -> int:
    """FLOPs of one head (KV group) or filter for one sequence."""
    return 2 * block.macs_per_unit(sequence_length)


def total_unit_parameters(anatomy: ModelAnatomy) -> int:
    """Parameters of all units of all blocks."""
    return sum(block.units * block.parameters_per_unit for block in anatomy.blocks)
