"""`prune_model`: the one-shot verb."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, Trainer

from .anatomy import UndoLog
from .config import PruningConfig, check_at_once, training_for
from .errors import PruningError
from .metric_budget import MetricBudgetConfig
from .metric_floor import check_evaluates, smallest_holding
from .offloading import is_offloaded
from .pruning_run import (
    Evaluation,
    Metrics,
    PruningRun,
    calibration_for,
    in_own_precision,
    tokenizer_of,
    undone_on_failure,
)
from .report.clock import StageClock
from .report.result import PruningResult
from .strategies.training import TrainingPruner
from .surgery.metadata_writing import write_metrics
from .unfinished_runs import check_resumes


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
    resume_dir: str | os.PathLike[str] | None = None,
) -> PruningResult:
    """Prunes a model at one go, in place: heads and filters are removed and what remains is repaired.

    Parameters are replaced by smaller ones, so make optimizers after this call. With a configuration for single weights
    (`sparsity=`) no matrix gets smaller: weights are set to zero. With `max_metric_drop=` several sizes are tried, see
    `hf_prune.metric_floor`; the result's `curve` has all of them.

    Args:
        model: a fine-tuned model of a supported family, with its task head; of any family for single weights. One
            that Accelerate offloads to memory or disk (`device_map`) stays so: one layer at a time is loaded, and cut
            whenever it is.
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
        resume_dir: a folder for what the run has found so far (sums of gradients, about once a minute; choices; repairs
            of blocks), with which the same call goes on where it was interrupted, to the same result. It is removed
            when the run has ended well. Every process needs to see its own files in it again.

    Returns:
        The model with its plan and report.

    Raises:
        PruningError: a bad request (its subclasses: an unsupported model, a budget out of reach). The model is then
            as it was.
    """
    check_one_shot(config)
    _check_offloaded(model, config, retrain)
    evaluation = Evaluation(eval_dataset, compute_metrics, data_collator)
    if config.prunes_weights:
        if resume_dir is not None:
            check_resumes(config)
        result = _prune_weights(model, config, calibration_data, evaluation, accelerator, retrain)
    else:
        check_evaluates(config, evaluation, retrained=retrain is not None)
        run = PruningRun.of(model, config, calibration_data, evaluation, accelerator, resume_dir)
        result = _prune_units(run, config, retrain)
        run.data.steps.remove()
    return replace(result, tokenizer=evaluation.tokenizer or tokenizer_of(calibration_data))


def check_one_shot(config: Any) -> None:
    """Raises a PruningError where `config` is not that of a strategy which prunes at one go."""
    if not isinstance(config, PruningConfig):
        raise PruningError(f"config is a {type(config).__name__}; pass a FisherPruningConfig or another PruningConfig.")
    check_at_once(config)


def _check_offloaded(model: PreTrainedModel, config: PruningConfig, retrain: Any) -> None:
    """Refuses to change single weights of a model whose weights are not in memory."""
    if not (retrain is not None or config.prunes_weights) or not is_offloaded(model):
        return
    what = "retrain=" if retrain is not None else f"The {config.strategy} strategy with sparsity="
    raise PruningError(
        f"{what} changes single weights, and those of this {type(model).__name__} are offloaded: Accelerate loads them"
        " only to compute with them. Load the model without a device_map that offloads; heads and filters can be"
        " removed either way."
    )


def _prune_units(
    run: PruningRun, config: PruningConfig, retrain: Callable[[PreTrainedModel], Trainer] | None
) -> PruningResult:
    """Cuts heads and filters."""
    curve = None
    if isinstance(config, MetricBudgetConfig) and config.max_metric_drop is not None:
        cut, curve = smallest_holding(run, config)
    else:
        cut = run.decide(config)
    with run.applied(config, cut, trained=retrain is not None) as made:
        # The metadata is written by now, so the checkpoints of a Trainer can be loaded.
        if retrain is not None:
            with run.clock("retraining"):
                _trainer_of(retrain, run.model).train()
        report = replace(run.measured(made.report), stages=run.clock.seconds)
    return PruningResult(run.model, made.cut.plan, report, config, curve=curve)


def _prune_weights(
    model: PreTrainedModel,
    config: PruningConfig,
    calibration_data: Any,
    evaluation: Evaluation,
    accelerator: Accelerator | None,
    retrain: Callable[[PreTrainedModel], Trainer] | None,
) -> PruningResult:
    """Sets single weights to zero: a training of no steps."""
    data = None
    if calibration_data is not None or config.needs_data:
        data = calibration_for(model, config, calibration_data, evaluation, accelerator)
    clock = StageClock()
    metrics: dict[str, Metrics] = {}

    def measure(side: str) -> None:
        found = evaluation.metrics(model, clock)
        if found:
            metrics[side] = found

    measure("dense")
    had = dict(model.config.__dict__)
    pruner: TrainingPruner = training_for(config)(model, config, 0)
    try:
        with undone_on_failure(model, UndoLog(), trained=retrain is not None):
            with clock("pruning"), in_own_precision(model):
                if data is not None and config.needs_data:
                    pruner.calibrate(data)
                pruner.begin()
            if retrain is None:
                measure("pruned")
            result = pruner.finish()
            if retrain is not None:
                with clock("retraining"):
                    _trainer_of(retrain, model).train()
                measure("pruned")
    except BaseException:
        pruner.abandon()
        model.config.__dict__.clear()
        model.config.__dict__.update(had)
        raise
    write_metrics([model.config], metrics)
    return replace(result, report=replace(result.report, stages=clock.seconds, metrics=metrics))


def _trainer_of(retrain: Callable[[PreTrainedModel], Trainer], model: PreTrainedModel) -> Trainer:
    trainer = retrain(model)
    if not callable(getattr(trainer, "train", None)):
        raise PruningError(
            f"retrain= returned a {type(trainer).__name__}: it is a function that makes a Trainer for the pruned model,"
            " which is trained then."
        )
    return trainer
