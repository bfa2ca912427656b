"""What a unit costs, and which units to keep under a budget."""

from .flops import count_flops, flops_per_unit, generation_flops_per_unit, total_flops, total_unit_parameters
from .head_counts import head_count, keep_heads, select_heads
from .latency import compare_latency, measure_latency
from .latency_fit import LatencyFit, fit_latency
from .latency_search import search_latency, search_latency_units
from .latency_table import LatencyConditions, latency_tables
from .layer_choice import kept_layer_count, lowest_places, removed_places
from .lengths import Lengths, data_lengths, lengths_of
from .levels import allocate_by_score
from .search import SearchResult, search_flops, search_units
from .select import check_budget, select_units
from .targets import PlanSoFar, Selection
from .weight_selection import (
    count_weights,
    kept_count,
    kth_largest,
    masks_above,
    masks_by_matrix,
    masks_over,
    masks_over_all,
    pattern_mask,
)

__all__ = [
    "LatencyConditions",
    "LatencyFit",
    "Lengths",
    "PlanSoFar",
    "SearchResult",
    "Selection",
    "allocate_by_score",
    "check_budget",
    "compare_latency",
    "count_flops",
    "count_weights",
    "data_lengths",
    "fit_latency",
    "flops_per_unit",
    "generation_flops_per_unit",
    "head_count",
    "keep_heads",
    "kept_count",
    "kept_layer_count",
    "kth_largest",
    "latency_tables",
    "lengths_of",
    "lowest_places",
    "masks_above",
    "masks_by_matrix",
    "masks_over",
    "masks_over_all",
    "measure_latency",
    "pattern_mask",
    "removed_places",
    "search_flops",
    "search_latency",
    "search_latency_units",
    "search_units",
    "select_heads",
    "select_units",
    "total_flops",
    "total_unit_parameters",
]
