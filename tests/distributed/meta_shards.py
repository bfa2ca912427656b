"""Trains a meta-pruner on all processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from hf_prune import MetaPruner, MetaPrunerConfig, MetaTrainingArguments, PruningError, train_meta_pruner
from tests.distributed.ending import end_processes
from tests.strategies.single_shot.planted import planted_model, texts

UPDATES, PER_UPDATE = 4, 4


def main(folder: Path) -> None:
    """Writes every process's pruner: of a whole training, and of one that goes on from the middle."""
    accelerator = Accelerator(cpu=True)
    for name, parts in (("whole", (UPDATES,)), ("resumed", (UPDATES // 2, UPDATES))):
        for updates in parts:
            pruner = train(accelerator, folder / f"{name}-{accelerator.num_processes}", updates)
        path = folder / f"{name}-{accelerator.num_processes}-{accelerator.process_index}.safetensors"
        save_file(pruner.state_dict(), path)
    refuse_to_go_on_apart(accelerator, folder)


def refuse_to_go_on_apart(accelerator: Accelerator, folder: Path) -> None:
    """Every process looks for the interrupted run in a folder of its own, which only the first one has written."""
    own = folder / f"apart-{accelerator.num_processes}-{accelerator.process_index}"
    train(accelerator, own, UPDATES // 2)
    try:
        train(accelerator, own, UPDATES)
        message = "went on"
    except PruningError as error:
        message = str(error)
    own.mkdir(exist_ok=True)
    (own / "message.txt").write_text(message, encoding="utf8")


def new_pruner(seed: int = 0) -> MetaPruner:
    torch.manual_seed(seed)
    return MetaPruner(MetaPrunerConfig(map_size=16, initializer_range=0.3))


def train(accelerator: Accelerator, folder: Path, updates: int) -> MetaPruner:
    """Trains up to `updates`; what is in the folder goes on."""
    pruner = new_pruner(accelerator.process_index)  # all are to begin with the first one's
    torch.manual_seed(0)
    arguments = MetaTrainingArguments(
        output_dir=str(folder),
        episodes=updates * PER_UPDATE,
        episodes_per_update=PER_UPDATE,
        episode_examples=8,
        scored_examples=4,
        validation_episodes=3,  # that processes cannot share out evenly
        eval_updates=UPDATES // 2,
        learning_rate=0.5,
    )
    data = {"single": [texts(60, 1)], "pair": [texts(50, 2)]}
    return train_meta_pruner(planted_model(), data, arguments, pruner=pruner, accelerator=accelerator, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_processes()
