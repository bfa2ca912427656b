"""A memory of what a model was, to see that a failure has left nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel


class Witness:
    """What a model was, down to its hooks; raises if anything of it has changed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.state = copy.deepcopy(model.state_dict())
        self.footprint = self._footprint()

    def _footprint(self) -> dict[str, Any]:
        # What transformers notes down itself is left out: on the first loss, on making a Trainer, on saving.
        notes = ("problem_type", "use_cache", "architectures", "dtype")
        settings = copy.deepcopy(self.model.config.to_dict())
        found: dict[str, Any] = {name: value for name, value in settings.items() if name not in notes}
        for name, module in self.model.named_modules():
            own = sorted(set(vars(module)) - {"_is_accelerate_prepared"})
            found[name] = (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), own)
        for name, parameter in self.model.named_parameters():
            found[name] = (parameter.requires_grad, parameter.grad)
        return found

    def check(self) -> None:
        state = self.model.state_dict()
        assert list(state) == list(self.state)
        for name, value in self.state.items():
            assert torch.equal(state[name], value), name
        found = self._footprint()
        changed = {name: value for name, value in found.items() if value != self.footprint.get(name)}
        assert changed == {}
        assert found.keys() == self.footprint.keys()
