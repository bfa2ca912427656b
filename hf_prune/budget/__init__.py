"""What a unit costs, and which units to keep under a budget."""

from .flops import count_flops, flops_per_unit, generation_flops_per_unit, total_flops, total_unit_parameters
from .latency import compare_latency, measure_latency
from .latency_fit import LatencyFit, fit_latency
from .latency_search import search_latency, search_latency_units
from .latency_table import LatencyConditions, latency_tables
from .lengths import Lengths, data_lengths, lengths_of
from .levels import allocate_by_score
from .search import SearchResult, search_flops, search_units
from .select import Selection, select_units
from .weight_selection import kept_count, kth_largest, masks_above, masks_by_matrix, masks_over, pattern_mask

__all__ = [
    "LatencyConditions",
    "LatencyFit",
    "Lengths",
    "SearchResult",
    "Selection",
    "allocate_by_score",
    "compare_latency",
    "count_flops",
    "data_lengths",
    "fit_latency",
    "flops_per_unit",
    "generation_flops_per_unit",
    "kept_count",
    "kth_largest",
    "latency_tables",
    "lengths_of",
    "masks_above",
    "masks_by_matrix",
    "masks_over",
    "measure_latency",
    "pattern_mask",
    "search_flops",
    "search_latency",
    "search_latency_units",
    "search_units",
    "select_units",
    "total_flops",
    "total_unit_parameters",
]
