"""Trains static masks on all processes, in place and in an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from hf_prune import PruningCallback, StaticMaskConfig, StaticPruningConfig
from tests.distributed.ending import end_processes
from tests.distributed.small_bert import small_model
from tests.distributed.train_shards import STEPS, TOTAL_BATCH, rows, write

SETTINGS: dict[str, Any] = {"sparsity": 0.6, "score_learning_rate": 0.05, "begin": 0.5, "end": 0.9}
NAMES = ("in_place", "adapter")


def train(folder: Path, name: str, **settings: Any) -> Any:
    arguments = TrainingArguments(
        output_dir=str(folder / name),
        max_steps=STEPS,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        average_tokens_across_devices=False,
        **{"save_strategy": "no"} | settings,
    )
    arguments.per_device_train_batch_size = TOTAL_BATCH // arguments.world_size
    model = small_model()
    if name == "in_place":
        callback = PruningCallback(StaticPruningConfig(**SETTINGS))
    else:
        model = get_peft_model(model, StaticMaskConfig(**SETTINGS, task_type="SEQ_CLS"))
        callback = PruningCallback()
    trainer = Trainer(model, arguments, train_dataset=rows(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return model


def train_all(folder: Path) -> None:
    """Writes every process's models: of whole trainings, and of ones that go on from the middle."""
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        write(train(folder, name, save_strategy="steps", save_steps=3), folder, name)
        resumed = train(folder, name, resume_from_checkpoint=str(folder / name / "checkpoint-3"))
        write(resumed, folder, f"{name}-resumed")


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
    end_processes()
