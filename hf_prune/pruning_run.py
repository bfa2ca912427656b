"""One-shot pruning of heads and filters, taken apart: the strategy's decision, the cut, and taking it back."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from .anatomy import ModelAnatomy, UndoLog, check_model, describe_model
from .budget.latency import check_length, compare_with_undone
from .budget.targets import in_wanted_units
from .calibration import CalibrationData
from .config import PruningConfig, StructuredPruningConfig, strategy_for
from .errors import PruningError
from .gates import check_bare
from .offloading import check_loadable, device_of, is_offloaded
from .report.build import block_reports, build_report, count_parameters
from .report.clock import StageClock
from .report.evaluate import evaluate_model
from .report.report import LatencySetting, PruningReport
from .scores import modes_restored
from .shards import has_shards
from .strategies.base import Cut, StagedStrategy
from .strategies.example_data import example_of
from .surgery import apply_plan, drop_identity_layers, write_metadata
from .surgery.metadata_writing import configs_of, write_metrics
from .unfinished_runs import check_resumes, open_run

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


def tokenizer_of(source: Any) -> Any:
    """What a data collator tokenises with, also one of a `DataLoader` or in the Trainer's own; None for nothing."""
    for name in ("collate_fn", "data_collator"):
        source = getattr(source, name, source)
    return getattr(source, "tokenizer", None)


@dataclass(frozen=True)
class Evaluation:
    """What metrics are measured on, as `Trainer` takes it; without a data set nothing is measured."""

    dataset: Any = None
    compute_metrics: Callable[[Any], Metrics] | None = None
    data_collator: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.dataset, (str, Path)):
            raise PruningError(f"eval_dataset={str(self.dataset)!r} is a name: pass the tokenised rows themselves.")

    @property
    def tokenizer(self) -> Any:
        """What the data collator tokenised with, if it has one."""
        return tokenizer_of(self.data_collator)

    def metrics(self, model: PreTrainedModel, clock: StageClock) -> Metrics:
        """The loss and the metrics of a model; nothing without a data set."""
        if self.dataset is None:
            return {}
        with clock("evaluation"):
            return evaluate_model(model, self.dataset, self.compute_metrics, self.data_collator)


@dataclass(frozen=True)
class CutModel:
    """A cut that is in the model, until `log` takes it back.

    Attributes:
        cut: as it was applied: layers with nothing left in them may have gone altogether.
        report: costs before and after, and the dense model's metrics.
        log: rolls the cut back, with its metadata.
    """

    cut: Cut
    report: PruningReport
    log: UndoLog


@dataclass(frozen=True)
class PruningRun:
    """What one-shot pruning of heads and filters works on, and its steps.

    Attributes:
        model: the model, dense to begin with.
        anatomy: of the dense model, with the units that the configuration means.
        data: calibration data, or a random example where the strategy needs none.
        evaluation: what metrics are measured on.
        dense_metrics: those of the dense model; empty without evaluation data.
        clock: where the time goes.
    """

    model: PreTrainedModel
    anatomy: ModelAnatomy
    data: CalibrationData
    evaluation: Evaluation
    dense_metrics: Metrics
    clock: StageClock = field(default_factory=StageClock)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        config: PruningConfig,
        calibration_data: Any,
        evaluation: Evaluation,
        accelerator: Accelerator | None,
        resume_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """A run on what the user has; the dense model is evaluated.

        Raises:
            PruningError: the model cannot be pruned with `config`, the data cannot be read, or `resume_dir` is that of
                another run.
        """
        if resume_dir is not None:
            check_resumes(config)
        anatomy = _checked_anatomy(model, config)
        if calibration_data is None and not config.needs_data:
            calibration_data = [example_of(model, config)]
        data = calibration_for(model, config, calibration_data, evaluation, accelerator)
        if resume_dir is not None:
            data.steps = open_run(Path(resume_dir), model, config, data)
        clock = StageClock()
        return cls(model, anatomy, data, evaluation, evaluation.metrics(model, clock), clock)

    def decide(self, config: PruningConfig) -> Cut:
        """The strategy's cut for one budget; the model is not changed."""
        self.data.steps.begin(_budget_of(config))
        with in_own_precision(self.model):
            cut: Cut = strategy_for(config)(self.model, self.anatomy, config, self.data, self.clock)
        return cut

    def decider(self, config: PruningConfig) -> Callable[[PruningConfig], Cut]:
        """The strategy's cuts for configurations that differ from `config` in nothing but the budget.

        What a strategy with stages measures on the model is measured here, once; others start anew for every budget.
        """
        strategy = strategy_for(config)
        if not isinstance(strategy, StagedStrategy):
            return self.decide
        given = self.model, self.anatomy
        self.data.steps.begin("any budget")
        with in_own_precision(self.model):
            statistics = strategy.measure(*given, config, self.data, self.clock)

        def decide(config: PruningConfig) -> Cut:
            self.data.steps.begin(_budget_of(config))
            with in_own_precision(self.model):
                cut = strategy.choose(*given, config, self.data, self.clock, statistics)
                return strategy.repair(*given, config, self.data, self.clock, cut)

        return decide

    @contextmanager
    def applied(
        self, config: PruningConfig, cut: Cut, *, timed: bool = True, trained: bool = False
    ) -> Iterator[CutModel]:
        """Cuts the model and writes its metadata; whatever fails from here to the end of the block takes it all back.

        Args:
            config: what the cut was made for.
            cut: the cut; before it is final, masked and shrunk outputs are compared on a calibration batch.
            timed: measure the latency with and without the cut.
            trained: weights are changed in the block, so they are to be put back as well.
        """
        dense_parameters = count_parameters(self.model)
        with self.clock("surgery"):
            batch = self.data.first()
            cut = replace(cut, plan=drop_identity_layers(self.model, self.anatomy, cut.plan, batch))
            log = apply_plan(self.model, self.anatomy, cut.plan, cut.repairs, batch)
        with undone_on_failure(self.model, log, trained):
            notes = cut.notes
            if timed and is_offloaded(self.model):
                timed, notes = False, (*notes, "The latency was not measured: it would be the time that loading takes.")
            latencies, setting = self._timing(config, cut, log) if timed else (None, None)
            report = build_report(
                model=self.model,
                config=config,
                blocks=block_reports(self.anatomy, cut.plan, cut.lengths),
                sequence_length=cut.sequence_length,
                dense_parameters=dense_parameters,
                latencies=latencies,
                latency_setting=setting,
                metrics={"dense": self.dense_metrics} if self.dense_metrics else {},
                notes=notes,
            )
            write_metadata(self.model, self.anatomy, cut.plan, config.to_dict(), report.costs(), report.metrics)
            yield CutModel(cut, report, log)

    def measured(self, report: PruningReport) -> PruningReport:
        """The report with the metrics of the model as it is now, which the model's metadata gets, too."""
        metrics = self.evaluation.metrics(self.model, self.clock)
        if not metrics:
            return report
        report = replace(report, metrics={**report.metrics, "pruned": metrics})
        write_metrics(configs_of(self.model, self.anatomy), report.metrics)
        return report

    def tried(self, config: PruningConfig, cut: Cut, *, timed: bool = False) -> tuple[Cut, PruningReport]:
        """The cut as it was applied, and its report; the model is as it was."""
        with self.applied(config, cut, timed=timed) as made:
            report = self.measured(made.report)
        made.log.roll_back()
        return made.cut, report

    def _timing(self, config: PruningConfig, cut: Cut, log: UndoLog) -> tuple[tuple[float, float], LatencySetting]:
        """The latency without and with the cut, and what it was measured on."""
        batch_size = config.latency_batch_size if isinstance(config, StructuredPruningConfig) else 1
        setting = LatencySetting(
            batch_size=batch_size,
            sequence_length=cut.sequence_length,
            device=self.model.device.type,
            dtype=str(self.model.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        with self.clock("surgery"):
            return compare_with_undone(self.model, log, batch_size, cut.sequence_length, repeats=5), setting


def in_own_precision(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Without the caller's autocast, in which sums over the calibration data and solves would be in half precision.

    A model whose weights are of several precisions may not run without it.
    """
    several = len({parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}) > 1
    return nullcontext() if several else torch.autocast(device_of(model).type, enabled=False)


def _budget_of(config: PruningConfig) -> str:
    """The budget in words, which sets the steps of one cut apart from those of others."""
    budgets = {name: getattr(config, name) for name in getattr(config, "BUDGETS", ())}
    return ",".join(f"{name}={value}" for name, value in budgets.items() if value is not None)


def calibration_for(
    model: PreTrainedModel, config: PruningConfig, data: Any, evaluation: Evaluation, accelerator: Accelerator | None
) -> CalibrationData:
    """Calibration data as batches of the size that `config` says, if it says one."""
    return CalibrationData(
        data,
        model,
        data_collator=evaluation.data_collator,
        batch_size=getattr(config, "batch_size", 32),
        accelerator=accelerator,
    )


@contextmanager
def undone_on_failure(model: PreTrainedModel, log: UndoLog, trained: bool) -> Iterator[None]:
    """Takes a cut back, with its metadata and any training since, if what follows it fails or is interrupted.

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


def _checked_anatomy(model: PreTrainedModel, config: PruningConfig) -> ModelAnatomy:
    """The model's anatomy, if it can be pruned with `config`."""
    check_model(model)
    check_loadable(model)
    if has_shards(model):
        raise PruningError(
            "Heads and filters are cut in whole matrices, but fully_shard (FSDP2) has sharded this model: prune it"
            " before that, with accelerator=Accelerator() on all processes."
        )
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
