"""Where a model keeps its heads, filters and sublayers."""

from .blocks import Block, ModelAnatomy
from .cut import cut_block
from .cut_together import cut_layer, cut_model, groups_of
from .describe import check_model, describe_model, read_blocks
from .families import FAMILIES, supported_model_types
from .layouts import AttentionLayout, ExpertsLayout, Family, FeedForwardLayout, Tap
from .matrices import WeightMatrix, all_matrices, choose_matrices, default_matrices, inner_model
from .matrix_names import MatrixName, matrix_name
from .position_tables import give_own_tables
from .projections import Part, Projection, linear_at, oriented, parameter_of, stored, weight_of
from .undo import UndoLog

__all__ = [
    "FAMILIES",
    "AttentionLayout",
    "Block",
    "ExpertsLayout",
    "Family",
    "FeedForwardLayout",
    "MatrixName",
    "ModelAnatomy",
    "Part",
    "Projection",
    "Tap",
    "UndoLog",
    "WeightMatrix",
    "all_matrices",
    "check_model",
    "choose_matrices",
    "cut_block",
    "cut_layer",
    "cut_model",
    "default_matrices",
    "describe_model",
    "give_own_tables",
    "groups_of",
    "inner_model",
    "linear_at",
    "matrix_name",
    "oriented",
    "parameter_of",
    "read_blocks",
    "stored",
    "supported_model_types",
    "weight_of",
]
