"""Gates whose gradients do not need all of a model's weights at once.

Autograd keeps every weight that a gradient has to go through, also those that Accelerate has taken off again after the
forward pass. So the layers of an offloaded model are computed twice, a second time on the way back (Chen et al. 2016,
"Training deep nets with sublinear memory cost"): a layer's weights are there while it runs forward and while it runs
backward, and of each batch only the hidden states between layers wait in memory. Every batch reads the weights twice,
which large batches make up for; the gradients are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PreTrainedModel

from ..anatomy import ModelAnatomy
from ..anatomy.layer_calls import Forward, LayerCall, replaced_forwards
from ..gates.unit_gates import UnitGates
from ..offloading import is_offloaded


@contextmanager
def gated(model: PreTrainedModel, anatomy: ModelAnatomy, gates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Puts a gate on every block for the forward passes within; gradients may be taken later.

    Args:
        model: the model.
        anatomy: the blocks, and the layers to compute twice where the model is offloaded.
        gates: one tensor per block, see `UnitGates`.
    """
    if not is_offloaded(model):
        with UnitGates(model, anatomy.blocks, gates):
            yield
        return
    values = {block.key: gate for block, gate in zip(anatomy.blocks, gates, strict=True)}

    def wrap(name: str, own: Forward) -> Forward:
        blocks = anatomy.blocks_of_layer(name)

        def run(call: LayerCall, hidden: torch.Tensor) -> Any:
            # Both times on a copy: modelling code may add to its tensors in place.
            with UnitGates(model, blocks, [values[block.key] for block in blocks]):
                return call.output(own, hidden.clone())

        def forward(*args: Any, **kwargs: Any) -> Any:
            # A cache would be filled twice, so there is none in the call.
            return checkpoint(run, *LayerCall.of(name, args, kwargs), use_reentrant=False)

        return forward

    # Stopped early, the second pass would leave a layer's last weights loaded.
    with replaced_forwards(model, anatomy.layers, wrap), set_checkpoint_early_stop(False):
        yield
