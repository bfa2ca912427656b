"""How long a text a model can read."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..anatomy.example_media import number
from ..errors import PruningError

_LIMITS = ("max_position_embeddings", "max_target_positions")


def reads_text(model: PreTrainedModel) -> bool:
    """Whether a sequence length means something to a model: it reads or writes tokens."""
    return model.main_input_name == "input_ids" or bool(getattr(model.config, "is_encoder_decoder", False))


def check_length(model: PreTrainedModel, sequence_length: int) -> None:
    """Raises a PruningError if the model has no positions for so many tokens."""
    limit = position_count(model)
    if limit is not None and sequence_length > limit:
        raise PruningError(f"sequence_length={sequence_length} exceeds the model's {limit} positions.")


def position_count(model: PreTrainedModel) -> int | None:
    """How many tokens a text may have; None where the config does not say, or the model reads none.

    RoBERTa and its kin count positions from the padding token's id on, so that many are lost.
    """
    limit = next((found for name in _LIMITS if (found := number(model.config, name)) is not None), None)
    if limit is None or not reads_text(model):
        return None
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    offsets = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    return limit - max(offsets, default=0)
