"""What pruning did to a model, for people: tables, pictures, model cards, and the measurements of a pruning study."""

from .features import feature_similarity
from .head_sparsity import sparsity_per_filter, sparsity_per_head
from .magnitude_order import MagnitudeShift, Shift, magnitude_shift
from .matrix_plots import plot_head_sparsity, plot_mask_overlap, plot_matrix_sparsity
from .overlap import MaskOverlap, Overlap, mask_overlap
from .reading import report_from_dict
from .report import BlockReport, LatencySetting, PruningReport, Size
from .sparsity_tables import MatrixSparsity, matrix_sparsity, sparsity_table
from .study_plots import (
    LineFit,
    StudyRow,
    accuracy_by_loss,
    plot_feature_similarity,
    plot_head_range,
    plot_losses,
    plot_magnitude_shift,
)
from .weight_report import WeightReport

__all__ = [
    "BlockReport",
    "LatencySetting",
    "LineFit",
    "MagnitudeShift",
    "MaskOverlap",
    "MatrixSparsity",
    "Overlap",
    "PruningReport",
    "Shift",
    "Size",
    "StudyRow",
    "WeightReport",
    "accuracy_by_loss",
    "feature_similarity",
    "magnitude_shift",
    "mask_overlap",
    "matrix_sparsity",
    "plot_feature_similarity",
    "plot_head_range",
    "plot_head_sparsity",
    "plot_losses",
    "plot_magnitude_shift",
    "plot_mask_overlap",
    "plot_matrix_sparsity",
    "report_from_dict",
    "sparsity_per_filter",
    "sparsity_per_head",
    "sparsity_table",
]
