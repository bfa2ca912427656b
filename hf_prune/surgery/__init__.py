"""Plans, physical removal, checkpoint metadata and building a pruned model from its config."""

from .bitmask_checkpoints import install_bitmask_hook, save_bitmask
from .identity_layers import drop_identity_layers
from .loading import install_build_hook
from .metadata import pruning_of
from .metadata_writing import write_metadata
from .plan import PruningPlan, layer_key
from .shrink import shrink_model
from .verify import apply_plan, outputs

__all__ = [
    "PruningPlan",
    "apply_plan",
    "drop_identity_layers",
    "install_bitmask_hook",
    "install_build_hook",
    "layer_key",
    "outputs",
    "pruning_of",
    "save_bitmask",
    "shrink_model",
    "write_metadata",
]
