"""`PruningCallback` on a model that FSDP2 has sharded.

A Trainer does not shard on the CPU, so this calls the callback as a Trainer does: its events on all processes, and its
state on the first one only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_prune import PruningCallback
from hf_prune.errors import PruningError
from tests.distributed.ending import end_processes
from tests.distributed.sharded_training import CONFIGS, MIDDLE, STEPS, batches, keep, new_model, sharded

NAMES = ("movement", "static")


def train(folder: Path, name: str, resumed: bool) -> None:
    checkpoint = folder / name / f"checkpoint-{MIDDLE}"
    arguments = TrainingArguments(output_dir=str(folder / name), max_steps=STEPS, use_cpu=True, report_to=[])
    state, control = TrainerState(max_steps=STEPS), TrainerControl()
    if resumed:
        arguments.resume_from_checkpoint = str(checkpoint)
        state.global_step = MIDDLE
        state.stateful_callbacks = json.loads((checkpoint / "callbacks.json").read_text())
    callback = PruningCallback(CONFIGS[name])
    model = new_model(checkpoint if resumed else None)
    callback.on_init_end(arguments, state, control, model=model)
    sharded(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.1)
    given: dict[str, Any] = {"model": model, "optimizer": optimizer}
    callback.on_train_begin(arguments, state, control, **given)
    for batch in batches(state.global_step):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        control.should_save = state.global_step == MIDDLE
        callback.on_step_end(arguments, state, control, **given)
        if control.should_save:
            write_checkpoint(callback, model, checkpoint)
    if PartialState().is_main_process:  # a checkpoint that another callback asks for, of which this one does not know
        (folder / name / f"checkpoint-{STEPS}").mkdir(exist_ok=True)
        with pytest.raises(PruningError, match="Add PruningCallback last"):
            callback.state()
    callback.on_train_end(arguments, state, control, **given)
    assert all(parameter.requires_grad for parameter in model.parameters())
    callback.result.save_pretrained(folder / f"{name}-{'resumed' if resumed else 'whole'}")


def write_checkpoint(callback: PruningCallback, model: Any, folder: Path) -> None:
    keep(model, folder / "model.safetensors")
    if PartialState().is_main_process:
        (folder / "callbacks.json").write_text(json.dumps({"PruningCallback": callback.state()}))


def main(folder: Path) -> None:
    PartialState(cpu=True)
    for name in NAMES:
        for resumed in (False, True):
            PartialState().wait_for_everyone()
            train(folder, name, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_processes()
