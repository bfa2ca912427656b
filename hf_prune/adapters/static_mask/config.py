"""Settings of a static mask as a PEFT adapter."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any

from peft import PeftConfig

from ...errors import PruningError
from ...strategies.static_mask import StaticMaskSettings, StaticPruningConfig, read_label_words


class StaticMaskType(str, enum.Enum):  # noqa: UP042
    """What PEFT's own enumeration of types has no member for."""

    STATIC_MASK = "STATIC_MASK"


PEFT_TYPE = StaticMaskType.STATIC_MASK
# What PEFT adds to `modules_to_save` by itself, according to the task.
_HEADS = ("classifier", "score", "qa_outputs")


@dataclass
class StaticMaskConfig(StaticMaskSettings, PeftConfig):
    """A task as a mask on a frozen model's weights (Jiang et al. 2023), as a PEFT adapter.

        model = get_peft_model(base, StaticMaskConfig(sparsity=0.9, task_type="SEQ_CLS"))
        Trainer(model, ..., callbacks=[PruningCallback()]).train()

    The base model's weights never change. Scores exist only while the adapter is trained; what is saved is one bit per
    weight, and what `modules_to_save` trains: by default the task head, or nothing if there are `label_words`.

    Raises:
        PruningError: a setting out of range.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Linear layers to mask: each entry is the end of a module's name or a regular expression for all"
            " of it. Default: every projection in the layers of the base model."
        },
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out, written as in target_modules."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the masks to train and to save, a task head for instance."}
    )
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "Of the weights that the mask belongs to; written by the library."}
    )
    label_word_ids: dict[str, int] | None = field(
        default=None, metadata={"help": "The token of each label's word; written by the library."}
    )
    mask_token_id: int | None = field(
        default=None, metadata={"help": "The mask token, for label_word_head='mlm'; written by the library."}
    )
    check_base: bool = field(
        default=True,
        metadata={"help": "Refuse a base model whose weights are not those that the mask was made for. Not stored."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if self.base_fingerprint is not None and not isinstance(self.base_fingerprint, str):
            raise PruningError(f"base_fingerprint={self.base_fingerprint!r} must be a string.")
        self.pruning_config()
        self.label_words = read_label_words(self.label_words)
        self._check_label_words()

    def _check_label_words(self) -> None:
        trained = [name for name in self.modules_to_save or () if name in _HEADS]
        if self.label_words is not None and trained:
            raise PruningError(
                f"modules_to_save={self.modules_to_save!r} would train {trained[0]}, which label_words stand in for."
                " Leave one of the two out."
            )
        ids = self.label_word_ids
        if ids is not None and not (isinstance(ids, dict) and all(map(_is_id, ids.values()))):
            raise PruningError(f"label_word_ids={ids!r} must be a token's number for every label.")
        if self.mask_token_id is not None and not _is_id(self.mask_token_id):
            raise PruningError(f"mask_token_id={self.mask_token_id!r} must be a token's number.")

    def pruning_config(self) -> StaticPruningConfig:
        """The same settings for a strategy; also their check."""
        shared = {item.name: getattr(self, item.name) for item in fields(StaticMaskSettings)}
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            shared[name] = sorted(value) if isinstance(value, (set, list, tuple)) else value
        return StaticPruningConfig(**shared)

    def to_dict(self) -> dict[str, Any]:
        """What `adapter_config.json` holds."""
        settings: dict[str, Any] = super().to_dict()
        del settings["check_base"]
        if self.label_words is not None:
            names = [name for name in settings["modules_to_save"] or () if name not in _HEADS]
            settings["modules_to_save"] = names or None
        for name, value in settings.items():
            if isinstance(value, set):
                settings[name] = sorted(value)
        return settings


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
