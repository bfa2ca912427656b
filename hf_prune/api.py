"""`prune_model`: the one-shot verb."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, Trainer

from .anatomy import ModelAnatomy, UndoLog, describe_model
from .budget.latency import check_length, compare_with_undone
from .budget.targets import in_wanted_units
from .calibration import CalibrationData
from .config import PruningConfig, StructuredPruningConfig, check_at_once, strategy_for, training_for
from .errors import PruningError
from .gates import check_bare
from .report.build import block_reports, build_report, count_parameters
from .report.clock import StageClock
from .report.evaluate import evaluate_model
from .report.report import LatencySetting
from .report.result import PruningResult
from .scores import evaluating, modes_restored
from .strategies.base import Cut
from .strategies.example_data import example_of
from .strategies.training import TrainingPruner
from .surgery import apply_plan, drop_identity_layers, write_metadata
from .surgery.metadata_writing import configs_of, write_metrics

logger = logging.getLogger(__name__)


def prune_model(
    model: PreTrainedModel,
    config: PruningConfig,
    calibration_data: Any = None,
    *,
    data_collator: Any = None,
    eval_dataset: Any = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    accelerator: Accelerator | None = None,
    retrain: Callable[[PreTrainedModel], Trainer] | None = None,
) -> PruningResult:
    """Prunes a model at one go, in place: heads and filters are removed and what remains is repaired.

    Parameters are replaced by smaller ones, so make optimizers after this call. With a configuration for single weights
    (`sparsity=`) no matrix gets smaller: weights are set to zero.

    Args:
        model: a fine-tuned model of a supported family, with its task head; of any family for single weights.
        config: the strategy and its budget, `FisherPruningConfig(flops=0.5)` for instance.
        calibration_data: a `datasets.Dataset` of tokenised rows, a `DataLoader`, or any iterable of batches; some
            hundred to a few thousand training examples, with labels where the strategy's scores need a loss.
            A strategy that draws at random needs none.
        data_collator: as for `Trainer`, where the calibration data holds rows.
        eval_dataset: tokenised rows with labels; if given, metrics are measured before and after.
        compute_metrics: as for `Trainer`.
        accelerator: shares the calibration data out over its processes.
        retrain: a function that makes a `Trainer` for the pruned model; it is trained, with its structure as it is,
            before the metrics are measured (Kwon et al. 2022, A.8).

    Returns:
        The model with its plan and report.

    Raises:
        PruningError: a bad request (its subclasses: an unsupported model, a budget out of reach). The model is then
            as it was.
    """
    if not isinstance(config, PruningConfig):
        raise PruningError(f"config is a {type(config).__name__}; pass a FisherPruningConfig or another PruningConfig.")
    check_at_once(config)
    anatomy = None if config.prunes_weights else _checked(model, config)
    data = None
    if calibration_data is not None or config.needs_data or anatomy is not None:
        data = CalibrationData(
            calibration_data if calibration_data is not None or config.needs_data else [example_of(model, config)],
            model,
            data_collator=data_collator,
            batch_size=getattr(config, "batch_size", 32),
            accelerator=accelerator,
        )
    clock = StageClock()
    metrics: dict[str, dict[str, float]] = {}

    def measure(side: str) -> None:
        if eval_dataset is not None:
            with clock("evaluation"), evaluating(model):
                metrics[side] = evaluate_model(model, eval_dataset, compute_metrics, data_collator)

    measure("dense")
    if anatomy is None or data is None:
        result = _prune_weights(model, config, data, clock, measure, retrain)
        write_metrics([model.config], metrics)
    else:
        result = _prune_units(model, anatomy, config, data, clock, measure, metrics, retrain)
    report = replace(result.report, stages=clock.seconds, metrics=metrics)
    return replace(result, report=report, tokenizer=getattr(data_collator, "tokenizer", None))


def _prune_units(
    model: PreTrainedModel,
    anatomy: ModelAnatomy,
    config: PruningConfig,
    data: CalibrationData,
    clock: StageClock,
    measure: Callable[[str], None],
    metrics: Mapping[str, Mapping[str, float]],
    retrain: Callable[[PreTrainedModel], Trainer] | None,
) -> PruningResult:
    """Cuts heads and filters; `metrics` is what `measure` fills."""
    dense_parameters = count_parameters(model)
    cut: Cut = strategy_for(config)(model, anatomy, config, data, clock)
    with clock("surgery"):
        cut = replace(cut, plan=drop_identity_layers(model, anatomy, cut.plan, data.first()))
        log, timing = _cut_and_time(model, anatomy, config, cut, data)
    with _undone_on_failure(model, log, trained=retrain is not None):
        report = build_report(
            model=model,
            config=config,
            blocks=block_reports(anatomy, cut.plan, cut.lengths),
            sequence_length=cut.sequence_length,
            dense_parameters=dense_parameters,
            latencies=timing[0],
            latency_setting=timing[1],
            notes=cut.notes,
        )
        # Written before retraining, so that the checkpoints of a Trainer can be loaded.
        write_metadata(model, anatomy, cut.plan, config.to_dict(), report.costs(), metrics)
        if retrain is not None:
            with clock("retraining"):
                retrain(model).train()
        measure("pruned")
        write_metrics(configs_of(model, anatomy), metrics)
    return PruningResult(model, cut.plan, report, config)


def _prune_weights(
    model: PreTrainedModel,
    config: PruningConfig,
    data: CalibrationData | None,
    clock: StageClock,
    measure: Callable[[str], None],
    retrain: Callable[[PreTrainedModel], Trainer] | None,
) -> PruningResult:
    """Sets single weights to zero: a training of no steps."""
    had = dict(model.config.__dict__)
    pruner: TrainingPruner = training_for(config)(model, config, 0)
    try:
        with _undone_on_failure(model, UndoLog(), trained=retrain is not None):
            with clock("pruning"):
                if data is not None and config.needs_data:
                    pruner.calibrate(data)
                pruner.begin()
            if retrain is None:
                measure("pruned")
                return pruner.finish()
            result = pruner.finish()
            with clock("retraining"):
                retrain(model).train()
            measure("pruned")
            return result
    except BaseException:
        pruner.abandon()
        model.config.__dict__.clear()
        model.config.__dict__.update(had)
        raise


def _checked(model: PreTrainedModel, config: PruningConfig) -> ModelAnatomy:
    """The model's anatomy, if it can be pruned with `config`."""
    anatomy = describe_model(model)
    if not any(block.units for block in anatomy.blocks):
        raise PruningError(f"{type(model).__name__} has no heads and no filters left: there is nothing to prune.")
    check_bare(model)
    anatomy = in_wanted_units(anatomy, config)
    length = getattr(config, "sequence_length", None)
    if length is not None:
        check_length(model, length)
    if not config.before_training:
        _warn_if_untrained(model)
    return anatomy


def _cut_and_time(
    model: PreTrainedModel, anatomy: ModelAnatomy, config: PruningConfig, cut: Cut, data: CalibrationData
) -> tuple[UndoLog, tuple[tuple[float, float], LatencySetting]]:
    """Applies the cut, checked on a calibration batch, and times the model with and without it."""
    log = apply_plan(model, anatomy, cut.plan, cut.repairs, data.first())
    batch_size = config.latency_batch_size if isinstance(config, StructuredPruningConfig) else 1
    try:
        latencies = compare_with_undone(model, log, batch_size, cut.sequence_length, repeats=5)
    except BaseException:
        log.roll_back()
        raise
    setting = LatencySetting(
        batch_size=batch_size,
        sequence_length=cut.sequence_length,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )
    return log, (latencies, setting)


@contextmanager
def _undone_on_failure(model: PreTrainedModel, log: UndoLog, trained: bool) -> Iterator[None]:
    """Takes the cut back, with its metadata and any training since, if what follows it fails or is interrupted.

    Modules are back in their modes at the end either way.
    """
    device = model.device
    state: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        if trained:
            state = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
        with modes_restored(model):
            yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in state:
                tensor.copy_(value)
                tensor.grad = None
        log.roll_back()
        if model.device != device:
            model.to(device)
        raise


def _warn_if_untrained(model: PreTrainedModel) -> None:
    """A head that was never trained makes every score meaningless, and nothing else would say so."""
    base = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    for name, module in model.named_modules():
        if id(module) in base or not isinstance(module, nn.Linear) or module.bias is None or not base:
            continue
        if module.weight.device.type != "meta" and not module.bias.any():
            logger.warning(
                "%s.%s has a bias of zeros, as if it was newly initialised: fine-tune the model before pruning it, or"
                " its scores say nothing about the task.",
                type(model).__name__,
                name,
            )
            return
