"""Settings of magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config import StructuredPruningConfig
from ...weight_config import WeightPruningConfig


@dataclass
class MagnitudePruningConfig(WeightPruningConfig, StructuredPruningConfig):
    """Removes what is smallest: single weights (Gordon et al. 2020), or heads and filters by their weights' sum.

    `sparsity` (or `pattern`) is about single weights, which become zeros; the other budgets are about heads and
    filters, which are cut out. In training either grows along the cubic schedule; `prune_model` prunes at once.
    """

    strategy: ClassVar[str] = "magnitude"
    needs_data: ClassVar[bool] = False
    BUDGETS: ClassVar[tuple[str, ...]] = (*StructuredPruningConfig.BUDGETS, "sparsity")
