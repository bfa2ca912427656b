"""Lets transformers build pruned models: the one hook that `import hf_prune` installs.

Every model calls `PreTrainedModel.post_init` at the end of its `__init__`, inner models first and often with the same
config. When a model gets there in which the blocks are where its config's pruning metadata says, they are cut to size:
before weights are initialised, loaded, quantised or dispatched. That serves `from_pretrained`, `from_config`, concrete
classes, pipelines and PEFT alike. Models without the metadata are not affected. Removed layers need no cut: the config
itself says how many are left. A head of label words gets its place at the same moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from ..anatomy import UndoLog, cut_model, give_own_tables, read_blocks
from .label_words import build_label_words
from .metadata import LABEL_WORDS, blocks_described, check_layer_counts, kept_units, pruning_of, stack_name


def install_build_hook() -> None:
    """Wraps `PreTrainedModel.post_init`, once per process."""
    original: Callable[..., Any] = PreTrainedModel.post_init
    if getattr(original, "builds_pruned_models", False):
        return

    @functools.wraps(original)
    def post_init(self: PreTrainedModel) -> None:
        build_pruned(self)
        original(self)

    post_init.builds_pruned_models = True  # type: ignore[attr-defined]
    PreTrainedModel.post_init = post_init


def build_pruned(model: PreTrainedModel) -> None:
    """Cuts a freshly built model to the sizes in its config, if it holds the blocks; does nothing the second time.

    Where the config tells of a head of label words, the model gets that, too.

    Raises:
        PruningError: the metadata does not fit the model; nothing has been cut.
    """
    data = pruning_of(model.config)
    if data is not None and LABEL_WORDS in data:
        build_label_words(model, data[LABEL_WORDS])
    if data is None or not (data["blocks"] or data.get("layers")):
        return  # dense, or with zeros for weights, which need no cut
    blocks = blocks_described(data, read_blocks(model))
    stacks = {stack_name(block, block.key): model.get_submodule(block.stack) for block in blocks}
    check_layer_counts(data, {name: len(list(layers.children())) for name, layers in stacks.items()})
    kept = {block.key: kept_units(data, block) for block in blocks}
    log = UndoLog()
    give_own_tables(model, blocks, {block.key for block in blocks if len(kept[block.key]) < block.units}, log)
    cut_model(model, blocks, {key: range(len(units)) for key, units in kept.items()}, log, original=kept)
