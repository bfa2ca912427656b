"""Plans, physical removal, checkpoint metadata and building a pruned model from its config."""

from .loading import install_build_hook
from .metadata import pruning_of, write_metadata
from .plan import PruningPlan
from .shrink import shrink_model
from .verify import apply_plan, outputs

__all__ = [
    "PruningPlan",
    "apply_plan",
    "install_build_hook",
    "outputs",
    "pruning_of",
    "shrink_model",
    "write_metadata",
]
