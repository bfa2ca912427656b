"""Short trainings of small models, and what is looked at afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_prune import MagnitudePruningConfig, PruningCallback, PruningConfig
from hf_prune.anatomy.matrices import choose_matrices
from tests.small_models import case

BERT = case("bert", "classification")
STEPS = 6
MAGNITUDE = MagnitudePruningConfig(sparsity=0.6, frequency=1)


def bert(dropout: float = 0.0, seed: int = 0, **changes: Any) -> PreTrainedModel:
    return BERT.model(seed=seed, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **changes)


def rows(count: int = 24) -> Dataset:
    batch = BERT.batch(lengths=(9,) * count)
    return Dataset.from_dict({name: value.tolist() for name, value in batch.items()})


def arguments(folder: Path, arguments_class: type[TrainingArguments] = TrainingArguments, **settings: Any) -> Any:
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return arguments_class(output_dir=str(folder), **chosen | settings)


def trainer_of(
    model: PreTrainedModel,
    folder: Path,
    *callbacks: TrainerCallback,
    trainer_class: type[Trainer] = Trainer,
    trainer_settings: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    return trainer_class(
        model,
        arguments(folder, **settings),
        **{"train_dataset": rows()} | (trainer_settings or {}),
        callbacks=list(callbacks),
    )


def train(model: PreTrainedModel, folder: Path, config: PruningConfig | None, **settings: Any) -> PruningCallback:
    """Trains and prunes a model; the callback has the result."""
    callback = PruningCallback(config)
    trainer_of(model, folder, callback, **settings).train()
    return callback


def kept(model: nn.Module) -> dict[str, torch.Tensor]:
    """True where a weight of the matrices that are pruned by default is not zero."""
    matrices = choose_matrices(model, lambda every, default: set(default))
    return {matrix.name: matrix.parameter.detach() != 0 for matrix in matrices}


def is_clean(model: nn.Module) -> bool:
    """Whether no parameter has hooks, or attributes that it did not have."""
    return not any(
        parameter._backward_hooks
        or parameter._post_accumulate_grad_hooks
        or [name for name in parameter.__dict__ if not name.startswith("_dynamo")]  # torch.compile's own
        for parameter in model.parameters()
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=tolerance), name


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def history(trainer: Trainer) -> list[dict[str, float]]:
    """The log of the steps, without times."""
    return [
        {name: value for name, value in row.items() if "runtime" not in name and "per_second" not in name}
        for row in trainer.state.log_history
        if "loss" in row
    ]


def assert_exactly_pruned(model: PreTrainedModel, sparsity: float = 0.6) -> None:
    """Every matrix has lost the fraction asked for, to the weight, and nothing else is left of pruning."""
    for name, mask in kept(model).items():
        assert mask.numel() - int(mask.count_nonzero()) == round(sparsity * mask.numel()), name
    assert is_clean(model)
