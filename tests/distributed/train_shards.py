"""Trains and prunes a small model on all processes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from datasets import Dataset
from safetensors.torch import save_file
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_prune import L0PruningConfig, MagnitudePruningConfig, MovementPruningConfig, PruningCallback, PruningConfig
from tests.distributed.ending import end_processes
from tests.distributed.small_bert import small_model

CONFIGS: dict[str, PruningConfig] = {
    "magnitude": MagnitudePruningConfig(sparsity=0.6, frequency=1),
    "movement": MovementPruningConfig(sparsity=0.6, score_learning_rate=0.05, begin=0.5, end=0.9),
    "soft_movement": MovementPruningConfig(threshold=0.4, score_learning_rate=0.5, regularization=10.0),
    "units": MagnitudePruningConfig(flops=0.4, round_to=1, frequency=1, end=0.9),
}
# Every process draws gates of its own, so two are not the same as one.
NOISY: dict[str, PruningConfig] = {"l0": L0PruningConfig(flops=0.5, round_to=1, end=0.6, gate_learning_rate=1.0)}
TOTAL_BATCH = 8
STEPS = 6


class Agreement(TrainerCallback):
    """Compares the zeros of all processes after every step."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        found = hashlib.sha256()
        for parameter in model.parameters():
            found.update((parameter.detach() != 0).numpy().tobytes())
        digests: list[Any] = [found.hexdigest()] * args.world_size
        if args.world_size > 1:
            torch.distributed.all_gather_object(digests, found.hexdigest())
        assert len(set(digests)) == 1, f"After step {state.global_step} the processes' masks differ."
        self.seen.append(digests[0])


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 64, (48, 7), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "label": (ids[:, 0] % 2).tolist()})


def train(folder: Path, name: str, **settings: Any) -> tuple[PreTrainedModel, Agreement]:
    arguments = TrainingArguments(
        output_dir=str(folder / name),
        max_steps=STEPS,
        learning_rate=1e-2,
        optim="sgd",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        # Otherwise the Trainer multiplies a mean over a process's examples by the number of processes.
        average_tokens_across_devices=False,
        **{"save_strategy": "no", "logging_steps": 1} | settings,
    )
    # The same total batch, whatever the number of processes.
    arguments.per_device_train_batch_size = TOTAL_BATCH // arguments.world_size
    model, agreement = small_model(), Agreement()
    callbacks = [PruningCallback((CONFIGS | NOISY)[name]), agreement]
    trainer = Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return model, agreement


def main(folder: Path) -> None:
    """Writes every process's pruned weights, and how often the masks have changed."""
    for name in CONFIGS | NOISY:
        model, agreement = train(folder, name)
        write(model, folder, name, {"masks": str(len(set(agreement.seen)))})
    train(folder, "movement", save_strategy="steps", save_steps=3)
    checkpoint = {"resume_from_checkpoint": str(folder / "movement" / "checkpoint-3")}
    write(train(folder, "movement", **checkpoint)[0], folder, "resumed")
    every_step = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best, _ = train(folder, "magnitude", load_best_model_at_end=True, save_only_model=True, **every_step)
    write(best, folder, "best")


def write(model: PreTrainedModel, folder: Path, name: str, about: dict[str, str] | None = None) -> None:
    rank, count = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed() else (0, 1)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / f"{name}-{count}-{rank}.safetensors", about)


def distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_processes()
