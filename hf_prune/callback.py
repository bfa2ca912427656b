"""`PruningCallback`: training-time strategies inside any `Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from .anatomy import inner_model
from .config import AutoPruningConfig, PruningConfig, training_for
from .errors import PruningError
from .processes import process_count, wait_for_all
from .pruning_run import tokenizer_of
from .recovery import Distillation, check_distillation
from .report.result import PruningResult
from .report.tasks import task_of
from .strategies.hold import HoldPruningConfig
from .strategies.training import TrainingPruner
from .surgery.weight_metadata import weights_of
from .trainer_levels import check_evaluates, evaluate_level, prepare_levels, reach_level, record_best
from .trainer_logs import AddsToLogs, install_log_hook
from .trainer_shards import CollectedState
from .training import digest, reload_pruning, resume_pruning, side_file, start_pruning, write_state

logger = logging.getLogger(__name__)


class PruningCallback(TrainerCallback, ExportableState, AddsToLogs):
    """Prunes the model that a `Trainer` trains.

        Trainer(model, args, train_dataset=train, callbacks=[PruningCallback(MagnitudePruningConfig(sparsity=0.6))])

    Every checkpoint that the Trainer writes is an ordinary one of the model as it is pruned so far. Beside it lies a
    side file with what `resume_from_checkpoint` needs. With `load_best_model_at_end` the best is chosen among those
    checkpoints that have reached what was asked for.

    Args:
        config: a strategy that works in training, or its settings as a dictionary. Without one the callback holds the
            zeros of a model whose single weights this library has pruned, or trains a PEFT model's static mask by the
            settings in its `StaticMaskConfig`.
        checkpoint: the folder that training is resumed from, where it is not in the Trainer's output folder.
        teacher: a model of the same task, or its folder or name on the Hub, that the pruned one learns from, too; as
            a rule the dense model.
        temperature: softens what both say, see `Distillation`.
        teacher_weight: the teacher's share of the loss.

    Attributes:
        result: once training has ended, the pruned model with its plan and report.

    Raises:
        PruningError: the strategy does not work in training.
    """

    def __init__(
        self,
        config: PruningConfig | Mapping[str, Any] | None = None,
        *,
        checkpoint: str | Path | None = None,
        teacher: PreTrainedModel | str | Path | None = None,
        temperature: float = 2.0,
        teacher_weight: float = 0.5,
    ) -> None:
        self.config = AutoPruningConfig.from_dict(dict(config)) if isinstance(config, Mapping) else config
        if self.config is not None:
            if not isinstance(self.config, PruningConfig):
                raise PruningError(
                    f"config is a {type(config).__name__}; pass a MagnitudePruningConfig or another PruningConfig."
                )
            training_for(self.config)
        self.result: PruningResult | None = None
        check_distillation(temperature, teacher_weight)
        self._checkpoint, self._teacher = checkpoint, teacher
        self._temperature, self._teacher_weight = temperature, teacher_weight
        self._distillation: Distillation | None = None
        self._pruner: TrainingPruner | None = None
        self._collected = CollectedState()
        self._output: Path | None = None
        self._met = False
        self._evaluated: int | None = None  # the step of the last evaluation
        self._unfreeze: Callable[[], None] | None = None
        install_log_hook()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freezes what a strategy does not train, before the Trainer makes an optimizer."""
        prepare = _prepares(self.config)
        if prepare is not None:
            self._unfreeze = prepare(kwargs["model"], self.config)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the strategy up, or takes it up where a checkpoint left it."""
        resumed = state.global_step > 0
        self._drop(resumed)
        try:
            pruner = self._set_up(args, state, kwargs["model"], kwargs["optimizer"])
        except BaseException:
            self._drop(resumed)
            self._thaw()
            raise
        self._met = pruner.reached
        # The state file of a run without this callback has no place for it.
        state.stateful_callbacks.setdefault(type(self).__name__, {})

    def _set_up(self, args: TrainingArguments, state: TrainerState, model: Any, optimizer: Any) -> TrainingPruner:
        """The strategy at work, and the teacher if there is one."""
        if self.result is not None:
            _check_optimizer(model, optimizer)
        config = self.config or _found_in(model)
        if process_count() > 1 and self._unfreeze is None and _prepares(self.config) is not None:
            raise PruningError(
                f"With several processes {type(config).__name__} must freeze the model before the Trainer wraps it:"
                " give the callback to Trainer(callbacks=[...]), not to add_callback, and make a new Trainer for every"
                " training."
            )
        self._output, self.result = Path(args.output_dir), None
        check_evaluates(config, args)
        if self._teacher is not None:  # before anything is pruned: a name may be wrong, a task another one
            teacher = teacher_for(model, self._teacher)
            self._distillation = Distillation(model, teacher, self._temperature, self._teacher_weight)
        if state.global_step:
            folder = self._resumed_from(args, state, config)
            self._pruner = resume_pruning(model, config, state.max_steps, folder, optimizer)
        else:
            self._pruner = start_pruning(model, config, state.max_steps, optimizer)
        prepare_levels(self._pruner, args)
        return self._pruner

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Lets the search for the best checkpoint begin anew once the model is as sparse as it was to become."""
        if self._pruner is None:
            return
        # Steps that mixed precision gave up count for the Trainer, but no optimizer has made them.
        self._pruner.step = state.global_step
        if not self._met and self._pruner.reached:
            self._met = True
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        reach_level(self._pruner, args, state, control)
        if control.should_save:
            self._collected.collect(self._pruner)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gets ready for a checkpoint; a level that has just been evaluated is not evaluated once more."""
        if self._evaluated == state.global_step:
            control.should_evaluate = False
        if control.should_save:
            self._collected.collect(self._pruner)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Records a level of a strategy's trade-off curve with what its evaluation gave."""
        self._evaluated = state.global_step
        evaluate_level(self._pruner, state, metrics or {})
        if args.save_strategy == SaveStrategy.BEST:
            self._collected.collect(self._pruner)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves a clean model, and the result."""
        if self._pruner is None:
            return
        self._dismiss_teacher()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            wait_for_all()  # the first process may still be writing the last checkpoint
            reload_pruning(self._pruner, state.best_model_checkpoint)
            record_best(self._pruner, state)
        if not self._pruner.reached:
            logger.warning("Training ended before the pruning schedule did: %s.", _text(self._pruner.logs()))
        self.result = self._pruner.finish()
        self.result.tokenizer = kwargs.get("processing_class") or tokenizer_of(kwargs.get("train_dataloader"))
        self._pruner = None
        self._thaw()

    def _thaw(self) -> None:
        if self._unfreeze is not None:
            self._unfreeze()
            self._unfreeze = None

    def _dismiss_teacher(self) -> None:
        if self._distillation is not None:
            self._distillation.remove()
            self._distillation = None

    def logs(self) -> dict[str, float]:
        """How far pruning is; what the Trainer's own logs get."""
        return self._pruner.logs() if self._pruner is not None else {}

    def state(self) -> dict[str, Any]:
        """For the Trainer's state file, which is written last: now the side file is written, so both are there or none.

        Returns:
            The settings, and the digest by which the side file is found again.
        """
        saved: dict[str, str] = {}
        step = self._pruner.step if self._pruner is not None else 0
        folder = _written_folder(self._output, step) if self._output is not None and step else None
        if self._pruner is not None and folder is not None:
            tensors = self._collected.take(self._pruner)
            saved[side_file(self._pruner.config)] = write_state(self._pruner, tensors, folder)
        config = self.config.to_dict() if self.config is not None else None
        arguments: dict[str, Any] = {
            "config": config,
            "temperature": self._temperature,
            "teacher_weight": self._teacher_weight,
        }
        if isinstance(self._teacher, (str, Path)):
            arguments["teacher"] = str(self._teacher)
        return {"args": arguments, "attributes": {"saved": saved}}

    def _resumed_from(self, args: TrainingArguments, state: TrainerState, config: PruningConfig) -> Path:
        """The folder that training is resumed from, which the Trainer keeps to itself."""
        name = side_file(config)
        saved = _saved(state.stateful_callbacks.get(type(self).__name__))
        known = {digest for file, digest in saved if file == name}
        places = [
            self._checkpoint,
            args.resume_from_checkpoint,
            Path(args.output_dir) / f"checkpoint-{state.global_step}",
        ]
        folders = [Path(place) for place in places if isinstance(place, (str, Path))]
        for folder in folders:
            if (folder / name).is_file() and (not known or digest(folder / name) in known):
                return folder
        if not known:
            others = ", ".join(sorted({file for file, _ in saved}))
            raise PruningError(
                f"The checkpoint at step {state.global_step} is not of a run with this {type(config).__name__}, which"
                f" would have written {name}{f' and not {others}' if others else ''}: it cannot be resumed with it. Go"
                " on with the configuration that the run had, or load the weights with from_pretrained and start a new"
                " training."
            )
        found = [str(folder / name) for folder in folders if (folder / name).is_file()]
        reason = f"{found[0]} is damaged or another run's" if found else f"none in {', '.join(map(str, folders))}"
        raise PruningError(
            f"The {name} of step {state.global_step} is missing: {reason}. If training is resumed from another folder,"
            " pass that: PruningCallback(config, checkpoint=...)."
        )

    def _drop(self, resumed: bool) -> None:
        """Takes off what a training that failed has left; a checkpoint's weights may be in the model already."""
        self._dismiss_teacher()
        if self._pruner is not None:
            self._pruner.abandon(restore=not resumed)
            self._pruner = None


def teacher_for(model: Any, teacher: PreTrainedModel | str | Path) -> PreTrainedModel:
    """A teacher on the student's device; by name it is loaded as a model of the student's task."""
    inner = inner_model(model)
    if not isinstance(teacher, PreTrainedModel):
        teacher = getattr(transformers, task_of(inner).auto_class).from_pretrained(teacher)
    return teacher.to(inner.device)


def _written_folder(output: Path, step: int) -> Path | None:
    """The checkpoint that is being written; a hyperparameter search has a folder for every run."""
    name = f"checkpoint-{step}"
    found = [folder for folder in (output / name, *output.glob(f"*/{name}")) if folder.is_dir()]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _prepares(config: PruningConfig | None) -> Callable[..., Callable[[], None] | None] | None:
    """What a strategy does with a model as soon as there is a Trainer."""
    return getattr(training_for(config), "prepare", None) if config is not None else None


def _found_in(model: Any) -> PruningConfig:
    """The configuration of a static mask's adapter, or one that holds what a checkpoint's metadata says is removed."""
    adapters = getattr(model, "static_mask_pruning_config", None)
    if adapters is not None:
        config: PruningConfig = adapters()
        return config
    inner = inner_model(model)
    if weights_of(inner.config) is None:
        raise PruningError(
            "PruningCallback() without a configuration holds the zeros of a pruned model, but this one's config says"
            " nothing of removed weights. Pass a configuration; HoldPruningConfig() holds whatever zeros there are."
        )
    made_with = inner.config.pruning.get("strategy", {})
    names = ("target_modules", "exclude_modules")
    return HoldPruningConfig(**{name: made_with.get(name) for name in names})


def _check_optimizer(model: Any, optimizer: Any) -> None:
    """A Trainer keeps its optimizer for the next training, though a cut has replaced the parameters it was made for."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if trained - held and held - trained:
        raise PruningError(
            "The Trainer's optimizer is that of the training before, which has cut the model since: the matrices that"
            " were cut would not be trained. Make a new Trainer, or set trainer.optimizer = None."
        )


def _saved(entries: Any) -> list[tuple[str, str]]:
    """The side files that the Trainer's state tells of, with their digests."""
    rows = entries if isinstance(entries, list) else [entries]
    saved = [(row or {}).get("attributes", {}).get("saved", {}) for row in rows]
    return [pair for item in saved if isinstance(item, dict) for pair in item.items()]


def _text(logs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
