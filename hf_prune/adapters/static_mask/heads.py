"""Heads of label words in a PEFT model: an adapter has its own, and switching adapters switches heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import skip_init_on_device
from transformers import PreTrainedModel

from ...errors import PruningError
from ...gates.head_places import HeadPlace, TokenChoice, head_place
from ...gates.label_word_head import HeadForm, LabelWordHead
from ...strategies.static_mask import WordTokens, label_word_head, label_word_tokens, read_label_words
from ...strategies.static_mask.label_words import WordHead
from .config import StaticMaskConfig


class AdapterTokenChoice(TokenChoice):
    """Follows the adapter that is active."""

    def __init__(self, place: HeadPlace, wrapper: ModulesToSaveWrapper) -> None:
        super().__init__(place, None)
        self._wrapper = wrapper

    @property
    def form(self) -> HeadForm | None:
        """The active adapter's head; None while adapters are disabled, or where it has an ordinary one."""
        wrapper = self._wrapper
        active = [] if wrapper.disable_adapters else wrapper.active_adapters
        heads = [wrapper.modules_to_save[name] for name in active if name in wrapper.modules_to_save]
        return heads[0].form if heads and isinstance(heads[0], LabelWordHead) else None


@skip_init_on_device  # low_cpu_mem_usage would leave a masked language model that is read here without weights
def adapter_head(config: StaticMaskConfig, model: Any) -> WordHead | None:
    """The head that an adapter's settings ask for, if they do; the tokens are noted in the settings.

    Raises:
        PruningError: as `label_word_head`, or the tokens that are stored are not those of the words.
    """
    words = read_label_words(config.label_words)
    if words is None:
        return None
    head_place(model)
    if config.label_word_ids is None:
        tokens = label_word_tokens(model, config)
        config.label_word_ids = dict(tokens.ids)
        config.mask_token_id = tokens.mask_token if config.label_word_head == "mlm" else None
    if set(config.label_word_ids) != set(words):
        raise PruningError(
            f"label_word_ids={config.label_word_ids!r} must have the labels that label_words have: {', '.join(words)}."
        )
    return label_word_head(model, config, WordTokens(config.label_word_ids, config.mask_token_id))


def switch_in(model: PreTrainedModel, adapter: str, head: WordHead) -> None:
    """Gives an adapter its head, in PEFT's own wrapper for modules that differ from adapter to adapter.

    PEFT wraps a classifier by itself to train and save it. It leaves modules alone that its wrapper has already, and
    these have nothing that could be trained or saved.
    """
    for path, module in head.place.modules(head.module()).items():
        wrapper = model.get_submodule(path)
        if isinstance(wrapper, ModulesToSaveWrapper):
            wrapper.update(adapter)
        else:
            wrapper = ModulesToSaveWrapper(wrapper, adapter)
            setattr(model, path, wrapper)
        wrapper.modules_to_save[adapter] = module.train(model.training)
    if head.place.token is not None and not _choices(model):
        AdapterTokenChoice(head.place, model.get_submodule(head.place.path)).attach(model.base_model)


def head_of(model: Any, adapter: str) -> WordHead | None:
    """The label words of an adapter, if it has some."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            head = module.modules_to_save[adapter]
            if isinstance(head, LabelWordHead):
                return WordHead(head_place(model), head.form, head.tensors())
    return None


def switch_off(model: Any, adapters: Iterable[str]) -> None:
    """Before adapters are taken off: puts the model's own head back where PEFT is not to leave a trained one.

    PEFT's way to take its wrapper off is for modules with weights.
    """
    heads = {adapter: head for adapter in adapters if (head := head_of(model, adapter)) is not None}
    for path in {path for head in heads.values() for path in (head.place.path, *head.place.bypassed)}:
        wrapper = model.get_submodule(path)
        if set(wrapper.active_adapters) <= set(heads):
            setattr(model, path, wrapper.original_module)
    for choice in _choices(model):
        choice.remove()


def _choices(model: Any) -> list[AdapterTokenChoice]:
    hooks: Iterable[Any] = getattr(model, "base_model", model)._forward_hooks.values()
    return [hook for hook in hooks if isinstance(hook, AdapterTokenChoice)]
