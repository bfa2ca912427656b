"""The tuner that puts static masks into a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...anatomy import UndoLog, WeightMatrix, choose_matrices
from ...errors import PruningError
from ...gates.bits import pack_mask, unpack_mask
from ...strategies.static_mask import StaticPruningConfig
from ...surgery.own_configs import give_own_configs
from ...surgery.weight_metadata import write_weight_metadata
from .config import StaticMaskConfig
from .fingerprint import fingerprint, same_weights
from .heads import adapter_head, head_of, switch_in, switch_off
from .layer import PREFIX, StaticMaskLayer
from .masks import AdapterMasks
from .pruner import AdapterPruner

_KEPT, _BITS, _SCORES = ".static_mask_kept", ".static_mask_bits", ".static_mask_scores"
_PEFT_PREFIX = "base_model.model."


class StaticMaskModel(BaseTuner):
    """Masks on the linear layers of a frozen model, made by `get_peft_model` with a `StaticMaskConfig`."""

    prefix = PREFIX
    tuner_layer_cls = StaticMaskLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: StaticMaskConfig, model_config: dict[str, Any]) -> StaticMaskConfig:
        """Targets are chosen where the model is known."""
        return peft_config

    def _prepare_model(self, peft_config: StaticMaskConfig, model: nn.Module) -> None:
        """Chooses the layers, before any is touched, and makes sure that the weights are those of the mask.

        Label words get their place here, since PEFT goes on to decide what of the head is trained.
        """
        name = self._check_name(peft_config, model)
        matrices = choose_matrices(model, peft_config.pruning_config().targets, only_layers=True)
        for matrix in matrices:
            _check_layer(model, matrix)
        found = fingerprint([WeightMatrix(f"{item.module}.weight", item.module, item.parameter) for item in matrices])
        if peft_config.base_fingerprint is None:
            peft_config.base_fingerprint = found
        elif peft_config.check_base and not same_weights(found, peft_config.base_fingerprint):
            raise PruningError(
                f"This mask was made for other weights than those of this {type(model).__name__}"
                f" (base_model_name_or_path={peft_config.base_model_name_or_path!r}): it would remove the wrong ones."
                " Load the base model as it was then, or pass config=StaticMaskConfig.from_pretrained(...,"
                " check_base=False)."
            )
        head = adapter_head(peft_config, model)
        if head is not None:
            switch_in(cast(PreTrainedModel, model), name, head)
        peft_config.target_modules = {matrix.module for matrix in matrices}
        peft_config.exclude_modules = None

    def _check_name(self, peft_config: StaticMaskConfig, model: nn.Module) -> str:
        """PEFT keeps the configurations of all adapters in a model by name, whatever their kind."""
        name = next(name for name, config in self.peft_config.items() if config is peft_config)
        module: Any
        for module in model.modules():
            other = isinstance(module, BaseTunerLayer) and not isinstance(module, StaticMaskLayer)
            if other and name in module._get_available_adapters():
                raise PruningError(
                    f"The model has an adapter {name!r} of another kind ({type(module).__name__}). Give this one"
                    " another name: get_peft_model(..., adapter_name=...)."
                )
        return name

    def _create_and_replace(
        self,
        peft_config: StaticMaskConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        trained = not peft_config.inference_mode
        if isinstance(target, StaticMaskLayer):
            target.add_mask(adapter_name, trained=trained)
        else:
            layer = StaticMaskLayer(cast(nn.Linear, target), adapter_name, trained=trained)
            if adapter_name not in self.active_adapters:
                layer.static_mask_scores.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: StaticMaskConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """The masks alone, as packed bits; scores are for training."""
        end = f"{_KEPT}.{adapter_name}"
        masks = {name: mask for name, mask in state_dict.items() if name.endswith(end)}
        return {f"{name.removesuffix(end)}{_BITS}.{adapter_name}": pack_mask(mask) for name, mask in masks.items()}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: StaticMaskConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Makes masks of packed bits, after checking that there is one for every layer and none too many."""
        rest = dict(state_dict)
        masks = {}
        for name, layer in model.named_modules():
            if isinstance(layer, StaticMaskLayer) and adapter_name in layer.static_mask_kept:
                key = next((key for key in (f"{name}{_BITS}", f"{_PEFT_PREFIX}{name}{_BITS}") if key in rest), None)
                if key is None:
                    raise PruningError(f"The adapter holds no mask for {name}: it belongs to another model.")
                weight = layer.base_layer.weight
                masks[f"{name}{_KEPT}.{adapter_name}"] = unpack_mask(rest.pop(key), weight.shape, name)
                layer.note_mask(adapter_name)
                if adapter_name in layer.static_mask_scores:
                    masks[f"{name}{_SCORES}.{adapter_name}"] = torch.zeros_like(weight, dtype=torch.float32)
        unknown = [key.removesuffix(_BITS) for key in rest if key.endswith(_BITS)]
        if unknown:
            raise PruningError(f"The adapter holds a mask for {unknown[0]}, which this model does not have.")
        return rest | masks

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """A merged model says in its config what was removed, as one does that was pruned in place.

        If the adapter has label words, they take the place of its head for good.
        """
        own = {name: self.peft_config[name] for name in self._own(adapter_names or self.active_adapters)}
        masks = {name: AdapterMasks(self.model, name) for name in own}
        heads = [head_of(self.model, name) for name in own] if merge else []
        switch_off(self.model, self._own(self.peft_config))
        model: nn.Module = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        if merge and isinstance(model, PreTrainedModel):
            give_own_configs(model, UndoLog())
            for head in filter(None, heads):
                head.put_into(model).settle()
            for name, config in own.items():
                write_weight_metadata(model.config, config.pruning_config().to_dict(), masks[name])
        return model

    def static_mask_pruning_config(self) -> StaticPruningConfig:
        """The active adapter's settings, for whoever trains it.

        Raises:
            PruningError: not exactly one adapter is active.
        """
        return self.peft_config[self._single_adapter()].pruning_config()

    def static_mask_pruner(self, model: Any, config: StaticPruningConfig, steps: int) -> AdapterPruner:
        """What trains the active adapter; `model` is the PEFT model around this one."""
        return AdapterPruner(model, config, steps, self._single_adapter())

    def _own(self, adapter_names: Iterable[str]) -> list[str]:
        """Those of the adapters that are static masks."""
        return [name for name in adapter_names if isinstance(self.peft_config.get(name), StaticMaskConfig)]

    def _single_adapter(self) -> str:
        names = self._own(self.active_adapters)
        if len(names) != 1:
            raise PruningError(
                f"Exactly one adapter must be active to be trained, got {', '.join(names) or 'none'}. Choose with"
                " set_adapter."
            )
        return names[0]


def _check_layer(model: nn.Module, matrix: WeightMatrix) -> None:
    """Raises a PruningError where a matrix is no linear layer's own, or another adapter is on it."""
    layer, holder = model.get_submodule(matrix.module), model.get_submodule(matrix.name.rpartition(".")[0])
    if isinstance(layer, StaticMaskLayer) and layer.merged:
        raise PruningError("A static mask is merged into the base model: call unmerge_adapter() before adding another.")
    if isinstance(layer, BaseTunerLayer) and not isinstance(layer, StaticMaskLayer):
        raise PruningError(
            f"{matrix.module} has an adapter of another kind already ({type(layer).__name__}). Leave it out with"
            " exclude_modules."
        )
    if not isinstance(holder, (nn.Linear, Conv1D)):
        raise PruningError(
            f"{matrix.module} is a {type(holder).__name__}; static masks as an adapter are for linear layers. Leave it"
            " out with exclude_modules, or prune in place with PruningCallback(StaticPruningConfig(...))."
        )
