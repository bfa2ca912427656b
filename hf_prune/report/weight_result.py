"""The result of pruning single weights."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..config import PruningConfig
from ..gates import MatrixMasks
from ..surgery.mask_plan import MaskPlan
from .build import count_parameters, name_of
from .result import PruningResult
from .sparsity_tables import MatrixSparsity
from .weight_report import WeightReport


def weight_result(model: PreTrainedModel, config: PruningConfig, masks: MatrixMasks) -> PruningResult:
    """The result of pruning single weights; the masks are still on the model.

    Of sharded matrices every process must ask for it, and gets the masks of whole ones.
    """
    pairs = [(matrix, masks.whole(index).cpu()) for index, matrix in enumerate(masks.matrices)]
    matrices = tuple(MatrixSparsity.of(matrix.name, mask) for matrix, mask in pairs)
    report = WeightReport(
        model_name=name_of(model),
        model_type=model.config.model_type,
        strategy=config.to_dict(),
        parameters=count_parameters(model),
        matrices=matrices,
    )
    return PruningResult(model, MaskPlan({matrix.name: mask for matrix, mask in pairs}), report, config)
