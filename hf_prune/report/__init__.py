"""What pruning did to a model, for people: tables, pictures, model cards, and the measurements of a pruning study."""

from .activation_maxima import MappingMaxima, activation_maxima
from .activation_plots import plot_activation_maxima
from .attention_plots import plot_attention_maps
from .curve import CurveLevel, TradeOffCurve
from .curve_plots import plot_curves, plot_pruning_map
from .features import feature_similarity
from .head_sparsity import sparsity_per_filter, sparsity_per_head
from .magnitude_order import MagnitudeShift, Shift, magnitude_shift
from .matrix_plots import plot_head_sparsity, plot_mask_overlap, plot_matrix_sparsity
from .overlap import MaskOverlap, Overlap, mask_overlap
from .reading import report_from_dict
from .report import BlockReport, LatencySetting, PruningReport, Size
from .sentence_similarity import StsCorrelation, sentence_vectors, sts_correlation
from .sparsity_tables import MatrixSparsity, matrix_sparsity, sparsity_table
from .spectral_plots import plot_singular_values
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
    "CurveLevel",
    "LatencySetting",
    "LineFit",
    "MagnitudeShift",
    "MappingMaxima",
    "MaskOverlap",
    "MatrixSparsity",
    "Overlap",
    "PruningReport",
    "Shift",
    "Size",
    "StsCorrelation",
    "StudyRow",
    "TradeOffCurve",
    "WeightReport",
    "accuracy_by_loss",
    "activation_maxima",
    "feature_similarity",
    "magnitude_shift",
    "mask_overlap",
    "matrix_sparsity",
    "plot_activation_maxima",
    "plot_attention_maps",
    "plot_curves",
    "plot_feature_similarity",
    "plot_head_range",
    "plot_head_sparsity",
    "plot_losses",
    "plot_magnitude_shift",
    "plot_mask_overlap",
    "plot_matrix_sparsity",
    "plot_pruning_map",
    "plot_singular_values",
    "report_from_dict",
    "sentence_vectors",
    "sparsity_per_filter",
    "sparsity_per_head",
    "sparsity_table",
    "sts_correlation",
]
