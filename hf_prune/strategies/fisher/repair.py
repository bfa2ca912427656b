"""The repair that a configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from ...anatomy import ModelAnatomy
from ...calibration import Batch, CalibrationData
from ...recovery import Choose, MaskTuner, Repair, Solver, Units, reconstruct, refit_weights
from ...surgery import PruningPlan
from .config import FisherPruningConfig


def repair_blocks(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: FisherPruningConfig,
    data: CalibrationData,
    plan: PruningPlan | Choose,
    notes: list[str],
    batches: Iterable[Batch] | None = None,
) -> Mapping[str, Repair]:
    """The repair that `config` asks for; what a reader should know is added to `notes`.

    Args:
        model, anatomy, config, data: as for a strategy.
        plan: which units stay, or what chooses them on the way (see `reconstruct`).
        notes: of the report.
        batches: this process's batches that the repair sees; by default `refit_examples` of `data`.
    """
    if config.recovery == "none":
        return {}
    tuner = MaskTuner(cast(Solver, config.solver), config.damp) if config.recovery == "mask_tuning" else None
    if isinstance(plan, PruningPlan):
        units: Units | Choose = {block.key: plan.units(block) for block in anatomy.blocks}
    else:
        units = plan
    with tqdm(total=len(anatomy.blocks), desc="Repair", unit="block") as bar:
        repairs = reconstruct(
            model,
            anatomy,
            units,
            data,
            data.take(config.refit_examples) if batches is None else batches,
            tuner or refit_weights,
            progress=lambda key: bar.update(),
        )
    if tuner is not None and tuner.stopped_at is not None:
        notes.append(f"Mask tuning stopped at {tuner.stopped_at}, whose scales left [-10, 10] (as the paper does).")
    return repairs
