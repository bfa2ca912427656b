"""Static masks as a PEFT method (Jiang et al. 2023): an adapter of one bit per weight."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import PEFT_TYPE, StaticMaskConfig
from .layer import PREFIX, StaticMaskLayer
from .model import StaticMaskModel

__all__ = ["StaticMaskConfig", "StaticMaskLayer", "StaticMaskModel"]

# PEFT's own way to register a method wants its name in an enumeration of PEFT's. Its tables are looked up by strings,
# which the enumeration's members are, too.
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = StaticMaskConfig
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = StaticMaskModel
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = PREFIX
