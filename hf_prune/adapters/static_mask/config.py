"""Settings of a static mask as a PEFT adapter."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any

from peft import PeftConfig

from ...errors import PruningError
from ...strategies.static_mask import StaticMaskSettings, StaticPruningConfig


class StaticMaskType(str, enum.Enum):  # noqa: UP042
    """What PEFT's own enumeration of types has no member for."""

    STATIC_MASK = "STATIC_MASK"


PEFT_TYPE = StaticMaskType.STATIC_MASK


@dataclass
class StaticMaskConfig(StaticMaskSettings, PeftConfig):
    """A task as a mask on a frozen model's weights (Jiang et al. 2023), as a PEFT adapter.

        model = get_peft_model(base, StaticMaskConfig(sparsity=0.9, task_type="SEQ_CLS"))
        Trainer(model, ..., callbacks=[PruningCallback()]).train()

    The base model's weights never change. Scores exist only while the adapter is trained; what is saved is one bit per
    weight, and what `modules_to_save` trains.

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
        for name, value in settings.items():
            if isinstance(value, set):
                settings[name] = sorted(value)
        return settings
