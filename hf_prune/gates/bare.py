"""Whether a model is as its modelling code made it, so that it can be cut."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..errors import PruningError
from .epsilon_gates import epsilon_gates_of
from .spectral_norm import has_spectral_norm
from .unit_gates import has_gates


def check_bare(model: PreTrainedModel) -> None:
    """Raises a PruningError where gates or a spectral norm are on a model, with how to take them off."""
    name = type(model).__name__
    if has_gates(model):
        raise PruningError(
            f"{name} has gates on its heads or filters. Take them off with remove_head_gates and remove_filter_gates; a"
            " mixin's save_pretrained folds them into the weights first."
        )
    if epsilon_gates_of(model) is not None:
        raise PruningError(f"{name} has epsilon gates. Take them off with remove_epsilon_gates.")
    if has_spectral_norm(model):
        raise PruningError(
            f"{name} has spectral normalisation. Take it off with remove_spectral_norm, which folds it into the"
            " weights."
        )
