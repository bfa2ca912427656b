"""Lets transformers build pruned models: the one hook that `import hf_prune` installs.

Every model calls `PreTrainedModel.post_init` at the end of its `__init__`, inner models first and with the same
config. When the model that holds the blocks gets there and its config carries pruning metadata, its projections are
cut to size: before weights are initialised, loaded, quantised or dispatched. That serves `from_pretrained`,
`from_config`, concrete classes, pipelines and PEFT alike. Models without the metadata are not affected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from ..anatomy.cut import UndoLog, cut_block
from ..anatomy.describe import describe_holder
from ..anatomy.families import family_of, supported_model_types
from ..errors import UnsupportedModelError
from .metadata import block_sizes, pruning_of


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

    Raises:
        PruningError: the metadata does not fit the model; nothing has been cut.
        UnsupportedModelError: the metadata belongs to a family that this version does not know.
    """
    data = pruning_of(model.config)
    if data is None:
        return
    if family_of(model.config.model_type) is None:
        raise UnsupportedModelError(
            f"This checkpoint is a pruned {model.config.model_type!r} model, which this version of hf_prune cannot"
            f" build (it knows {', '.join(supported_model_types())}). Install a newer hf_prune."
        )
    blocks = {block.local_key: block for block in describe_holder(model)}
    if not blocks:
        return
    sizes = block_sizes(data, blocks)
    for key, units in sizes.items():
        block = blocks[key]
        if units != block.units:
            cut_block(model.get_submodule(block.layer), block, range(units), UndoLog())
