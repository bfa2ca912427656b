"""`recover`: a short training in which a pruned model learns from the dense one, and stays an ordinary model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from .anatomy import UndoLog, describe_model
from .callback import teacher_for
from .errors import PruningError
from .gates import check_bare
from .pruning_run import undone_on_failure
from .recovery import Distillation, check_distillation
from .recovery.hidden_states import DeepDistillation
from .recovery.low_rank import adapted, lora_config, trained_copies
from .recovery.steady_training import steady
from .recovery.training_traces import traces_removed
from .report.evaluate import evaluate_model
from .setting_checks import is_number
from .surgery.metadata import pruned_configs
from .surgery.metadata_writing import write_metrics
from .surgery.weight_metadata import weights_of

LORA_RATE = 5e-4
FULL_RATE = 5e-5


def recover(
    model: PreTrainedModel,
    teacher: PreTrainedModel | str | Path,
    train_dataset: Any,
    *,
    eval_dataset: Any = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    data_collator: Any = None,
    training_args: TrainingArguments | None = None,
    lora: bool | LoraConfig = True,
    temperature: float = 2.0,
    teacher_weight: float = 0.5,
    hidden_weight: float = 0.0,
    dropout: bool = False,
) -> PreTrainedModel:
    """Trains a pruned model for a short while, in place, to say what the dense model says.

    The loss is (1 − teacher_weight) · the model's own + teacher_weight · (T² · KL to the teacher's logits +
    hidden_weight · relative squared error of the layers' outputs), see `Distillation` and `DeepDistillation`. The
    structure stays as it is; adapters are merged into the weights at the end.

    Args:
        model: a pruned model (or any other that its teacher fits).
        teacher: the dense model, or its folder or name on the Hub; put where the model is, else not changed.
        train_dataset: tokenised rows, as for `Trainer`; with teacher_weight=1 they need no labels.
        eval_dataset: tokenised rows with labels; if given, the recovered model is evaluated, and its metrics take the
            place of those that the pruned one's `config.pruning` has. Without it these go, since they are no longer
            true.
        compute_metrics: as for `Trainer`.
        data_collator: as for `Trainer`.
        training_args: as for `Trainer`; by default one epoch in batches of 32 with a learning rate of 5e-4 (5e-5
            without LoRA), where the model is.
        lora: train low-rank adapters of all projections in the layers (True: of rank 16), which takes less memory and
            forgets less, or all weights (False).
        temperature: softens what both say.
        teacher_weight: the teacher's share of the loss, above 0 and at most 1.
        hidden_weight: of the hidden states beside the logits, 1 for instance; the model must have all of the teacher's
            layers.
        dropout: whether the model trains with its dropout, and whatever else it does in training only. By default it
            trains as it computes in evaluation: it has less to spare than the dense model had.

    Returns:
        `model`, in the modes in which its modules were.

    Raises:
        PruningError: a bad request; the model is then as it was, as it is after any other failure.
    """
    check_distillation(temperature, teacher_weight)
    _check_settings(hidden_weight, dropout, training_args)
    _check_trainable(model)
    teaching = teacher_for(model, teacher)
    layers = describe_model(model).layers if lora or hidden_weight else ()
    _check_teacher(model, teaching, layers if hidden_weight else None)
    adapters = lora_config(model, layers, lora)
    own = list(model.modules())  # adapters keep the dropout that they were given
    with tempfile.TemporaryDirectory() as folder, _settings_kept(model), undone_on_failure(model, UndoLog(), True):
        with traces_removed(model), adapted(model, adapters) as student:
            settled = [] if dropout else [*own, *trained_copies(student)]
            trainer = Trainer(
                student,
                training_args or _default_arguments(model, folder, adapters is not None),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                data_collator=data_collator,
                compute_metrics=compute_metrics,
            )
            teaching = teaching.to(model.device)  # where the Trainer has put the student
            shares = {"temperature": temperature, "weight": teacher_weight}
            with steady(student, settled), _taught(student, teaching, layers, hidden_weight, **shares):
                trainer.train()
        metrics = {} if eval_dataset is None else evaluate_model(model, eval_dataset, compute_metrics, data_collator)
        _renew_metrics(model, metrics)
    return model


def _check_settings(hidden_weight: float, dropout: bool, training_args: TrainingArguments | None) -> None:
    if not is_number(hidden_weight) or hidden_weight < 0:
        raise PruningError(f"hidden_weight={hidden_weight!r} must be a number of at least 0.")
    if not isinstance(dropout, bool):
        raise PruningError(f"dropout={dropout!r} must be True or False.")
    smoothing = training_args.label_smoothing_factor if training_args is not None else 0.0
    if smoothing:
        raise PruningError(
            f"label_smoothing_factor={smoothing} makes the Trainer compute a loss of its own, in which the teacher has"
            " no part: leave it at 0."
        )
    noise = training_args.neftune_noise_alpha if training_args is not None else None
    if noise is not None and not dropout:
        raise PruningError(
            f"neftune_noise_alpha={noise} adds noise in training mode only, and the model trains as in evaluation: set"
            " dropout=True, or leave it out."
        )


def _check_trainable(model: Any) -> None:
    """Raises a PruningError where a training would spoil the model, or the model is none."""
    if not isinstance(model, PreTrainedModel):
        raise PruningError(
            f"recover trains a Transformers model, not a {type(model).__name__}; merge adapters first"
            " (merge_and_unload)."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise PruningError(
            f"{type(model).__name__} has adapters on it (add_adapter, load_adapter). Take them off with delete_adapter,"
            " or merge them with PEFT before."
        )
    check_bare(model)
    if weights_of(model.config) is not None:
        raise PruningError(
            "Single weights were removed from this model, and recover would fill them in again. Train it with"
            " PruningCallback(HoldPruningConfig(), teacher=...), which holds the zeros."
        )


def _check_teacher(model: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[str] | None) -> None:
    """Raises a PruningError where there is nothing to learn from the teacher, or not layer by layer (unless None)."""
    if teacher is model:
        raise PruningError(
            "The teacher is the pruned model itself: prune_model works in place. Load the dense model once more, or"
            " give its folder."
        )
    theirs = layers if layers is None else describe_model(teacher).layers
    if theirs != layers:
        raise PruningError(
            f"hidden_weight= compares layers of the same name, and the teacher's {len(theirs or ())} layers are not the"
            f" model's {len(layers or ())}: removed layers have no counterpart. Leave hidden_weight at 0."
        )


@contextmanager
def _taught(
    student: nn.Module, teacher: PreTrainedModel, layers: Sequence[str], hidden_weight: float, **shares: float
) -> Iterator[None]:
    """The student's own loss is mixed with what the teacher says of it."""
    if hidden_weight:
        distillation: Distillation = DeepDistillation(student, teacher, layers, hidden_weight, **shares, labelled=False)
    else:
        distillation = Distillation(student, teacher, **shares, labelled=False)
    try:
        yield
    finally:
        distillation.remove()


@contextmanager
def _settings_kept(model: PreTrainedModel) -> Iterator[None]:
    """What a training changes besides the weights comes back: frozen parameters, the device, the use of a cache."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device, use_cache = model.device, getattr(model.config, "use_cache", None)
    try:
        yield
    finally:
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)
        if use_cache is not None:
            model.config.use_cache = use_cache
        if model.device != device:
            model.to(device)


def _default_arguments(model: PreTrainedModel, folder: str, adapted: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=LORA_RATE if adapted else FULL_RATE,
        warmup_steps=0.1,
        save_strategy="no",
        report_to=[],
        use_cpu=model.device.type == "cpu",
        disable_tqdm=None,
    )


def _renew_metrics(model: PreTrainedModel, metrics: dict[str, float]) -> None:
    """Puts what was measured now into the metadata, instead of what was measured before the training."""
    for config, earlier in pruned_configs(model):
        known = {side: old for side, old in earlier.get("metrics", {}).items() if side != "pruned"}
        write_metrics([config], known | ({"pruned": metrics} if metrics else {}))
