"""How many tokens each block of a model sees: text, image patches and frames of sound have lengths of their own.

A model whose only list of layers reads text needs one number. Others are run once on one example, and what enters
their projections is counted.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from ..anatomy import Block, ModelAnatomy
from ..anatomy.example_inputs import example_batch
from ..anatomy.example_media import MEDIA
from ..anatomy.holders import holder_of
from ..calibration import Batch, CalibrationData, example_count, without_labels
from ..errors import PruningError
from .block_lengths import BlockLength, measured_lengths
from .positions import position_count, reads_text

logger = logging.getLogger(__name__)

_TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "bbox")


@dataclass(frozen=True)
class Lengths:
    """Tokens per example, for every block.

    Attributes:
        tokens: what a report calls the sequence length: tokens of the text, or of the first block where there is none.
        blocks: by block key, for blocks that may see something else.
        generating: paths of the lists of layers that run again for every generated token.
    """

    tokens: int
    blocks: Mapping[str, BlockLength] = field(default_factory=dict)
    generating: frozenset[str] = frozenset()

    def of(self, block: Block) -> BlockLength:
        """What a block sees."""
        return self.blocks.get(block.key) or BlockLength.same(self.tokens)


def lengths_of(
    model: PreTrainedModel, anatomy: ModelAnatomy, sequence_length: int = 128, decoder_length: int | None = None
) -> Lengths:
    """The lengths of one example of a model: images and sound have the size that its config gives.

    Args:
        model: a supported model.
        anatomy: from `describe_model(model)`.
        sequence_length: tokens of a text; not more than the model has positions for are counted.
        decoder_length: tokens of a decoder that has an encoder; by default `sequence_length`.
    """
    if _is_one_text(model, anatomy):
        return Lengths(sequence_length, generating=_generating(model, anatomy))
    return _lengths(model, anatomy, sequence_length, decoder_length or sequence_length, [{}])


def data_lengths(
    model: PreTrainedModel, anatomy: ModelAnatomy, data: CalibrationData, sequence_length: int | None = None
) -> Lengths:
    """The lengths of calibration data: texts have their mean length, images and sound that of the first example.

    Args:
        model: a supported model.
        anatomy: from `describe_model(model)`.
        data: the calibration data.
        sequence_length: tokens of a text, encoder's and decoder's, whatever the data says.
    """
    text = sequence_length or data.sequence_length()
    decoder = sequence_length or data.decoder_length()
    example = _first_example(data)
    media = _without_text(example)
    if text is not None and not media and _is_one_text(model, anatomy):
        return Lengths(text, generating=_generating(model, anatomy))
    return _lengths(model, anatomy, text or decoder or 1, decoder or text or 1, [media, example])


def _is_one_text(model: PreTrainedModel, anatomy: ModelAnatomy) -> bool:
    """Whether all blocks see the same text."""
    one = len({block.stack for block in anatomy.blocks}) == 1
    return one and model.main_input_name == "input_ids" and not getattr(model.config, "is_encoder_decoder", False)


def _reads_only_text(model: PreTrainedModel) -> bool:
    """Whether all lists of layers read texts, which are counted at one length where no example can be run."""
    accepted = inspect.signature(model.forward).parameters
    return model.main_input_name == "input_ids" and not any(name in accepted for name in MEDIA)


def _first_example(data: CalibrationData) -> Batch:
    batch = without_labels(data.first())
    examples = example_count(batch)
    return {
        name: value[:1] if isinstance(value, torch.Tensor) and value.dim() and len(value) == examples else value
        for name, value in batch.items()
    }


def _without_text(example: Batch) -> Batch:
    """An example's images and sounds; a mask belongs to them where there is no text beside them."""
    beside_text = "input_ids" in example
    return {
        name: value
        for name, value in example.items()
        if not name.startswith("decoder_") and not (beside_text and name in _TEXT)
    }


def _lengths(
    model: PreTrainedModel, anatomy: ModelAnatomy, text: int, decoder: int, examples: Sequence[Batch]
) -> Lengths:
    """What is counted in a run on one example: random texts of the given lengths with the first `examples` that do."""
    limit = position_count(model) or max(text, decoder)
    text, decoder = min(text, limit), min(decoder, limit)
    reason = ""
    for example in examples:
        try:
            blocks = measured_lengths(model, anatomy, {**_random_example(model, text, decoder), **example})
        except PruningError as error:  # random texts need not go with the images that the data brings
            reason = reason or str(error)
            continue
        first = blocks[anatomy.blocks[0].key].queries if anatomy.blocks else text
        tokens = (text if model.main_input_name == "input_ids" else decoder) if reads_text(model) else first
        return Lengths(tokens, blocks, _generating(model, anatomy))
    if not _reads_only_text(model):
        logger.warning("%s Costs are counted as if every block saw %d tokens.", reason, text)
    return Lengths(text, generating=_generating(model, anatomy))


def _random_example(model: PreTrainedModel, text: int, decoder: int) -> Batch:
    batch = example_batch(model, 1, text)
    ids = batch.get("decoder_input_ids")
    if isinstance(ids, torch.Tensor):
        batch["decoder_input_ids"] = ids[:, :1].expand(1, decoder)
    return batch


def _generating(model: PreTrainedModel, anatomy: ModelAnatomy) -> frozenset[str]:
    return frozenset(_generating_stacks(model, anatomy)) if model.can_generate() else frozenset()


def _generating_stacks(model: PreTrainedModel, anatomy: ModelAnatomy) -> Iterator[str]:
    """The lists of layers whose keys and values are cached."""
    for block in anatomy.attentions:
        holder = holder_of(model, block.stack)
        decodes = getattr(holder.config, "is_decoder", None)
        core = model.get_submodule(block.layer).get_submodule(block.layout.name)
        causal = any(getattr(module, "is_causal", False) for module in core.modules())
        if "past_key_values" in inspect.signature(holder.forward).parameters and (causal or decodes is not False):
            yield block.stack
