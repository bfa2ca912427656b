"""Prunes single weights of a small model while it is trained, sharded by FSDP2 over all processes; and goes on with it.

On one process the model is an ordinary one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from hf_prune import (
    HoldPruningConfig,
    MagnitudePruningConfig,
    MovementPruningConfig,
    PruningConfig,
    RandomPruningConfig,
    StaticPruningConfig,
)
from hf_prune.training import resume_pruning, save_pruning, start_pruning
from tests.distributed.ending import end_processes
from tests.distributed.small_bert import small_model

STATIC = {"sparsity": 0.6, "score_learning_rate": 0.05, "begin": 0.4, "end": 0.9}
MOVEMENT = {"score_learning_rate": 0.05, "begin": 0.4, "end": 0.9}
CONFIGS: dict[str, PruningConfig] = {
    "magnitude": MagnitudePruningConfig(sparsity=0.6, frequency=1),
    "global_magnitude": MagnitudePruningConfig(sparsity=0.6, frequency=1, scope="global", end=0.5),
    "pattern": MagnitudePruningConfig(pattern="2:4", frequency=2, target_modules=[".*[0-9][.]output[.]dense"]),
    "deleted": MagnitudePruningConfig(sparsity=0.4, frequency=1, end=0.4, after="delete"),
    "movement": MovementPruningConfig(sparsity=0.6, **MOVEMENT),
    "global_movement": MovementPruningConfig(sparsity=0.6, scope="global", **MOVEMENT),
    "soft_movement": MovementPruningConfig(threshold=0.4, score_learning_rate=0.5, regularization=10.0),
    "static": StaticPruningConfig(**STATIC),
    "static_score": StaticPruningConfig(**STATIC, masking="score"),
    "static_global": StaticPruningConfig(**STATIC, masking="global", magnitude_prior=0.0),
    "random": RandomPruningConfig(sparsity=0.5, end=0.5),
    "hold": HoldPruningConfig(),
}
ACCUMULATED = ("magnitude", "movement", "static")
STEPS, MIDDLE = 6, 3
TOTAL_BATCH = 8


def batches(first: int) -> Iterator[dict[str, torch.Tensor]]:
    """This process's share of every mini-batch from the step `first` on."""
    generator = torch.Generator().manual_seed(1)
    state = PartialState()
    for step in range(STEPS):
        ids = torch.randint(5, 64, (TOTAL_BATCH, 7), generator=generator)
        own = ids[state.process_index :: state.num_processes]
        if step >= first:
            yield {"input_ids": own, "labels": own[:, 0] % 2}


def new_model(checkpoint: Path | None = None) -> PreTrainedModel:
    """Most of its matrices have 33 rows, which neither two nor four processes can share out evenly."""
    model = small_model(hidden_size=33, num_attention_heads=3)
    with torch.no_grad():  # some zeros to hold
        model.bert.pooler.dense.weight[::2, 1::3] = 0
    if checkpoint is not None:
        model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return model


def sharded(model: PreTrainedModel) -> PreTrainedModel:
    """The model, sharded where there are several processes."""
    if PartialState().num_processes > 1:
        mesh = init_device_mesh("cpu", (PartialState().num_processes,))
        for layer in model.bert.encoder.layer:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def train(folder: Path, name: str, resumed: bool = False, accumulated: int = 1) -> PreTrainedModel:
    """Trains from the beginning, with a checkpoint in the middle, or from such a checkpoint on."""
    checkpoint = folder / f"{name}-checkpoint"
    model, config = sharded(new_model(checkpoint if resumed else None)), CONFIGS[name]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, weight_decay=0.1)
    with torch.no_grad():  # an evaluation leaves whole copies of some parameters in the model
        model(**next(batches(0)))
    start = (config, STEPS, checkpoint, optimizer) if resumed else (config, STEPS, optimizer)
    pruner: Any = (resume_pruning if resumed else start_pruning)(model, *start)
    first = MIDDLE if resumed else 0
    for step, batch in enumerate(batches(first), first):
        if step == MIDDLE and not resumed:
            keep(model, checkpoint / "model.safetensors")
            save_pruning(pruner, checkpoint)
        for part in range(accumulated):
            some = {key: value[part::accumulated] for key, value in batch.items()}
            (model(**some).loss / accumulated).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert_agreed(pruner.masks)
    result = pruner.finish()
    for key, mask in result.plan.masks.items():
        assert mask.shape == dict(model.named_parameters())[key].shape
    return model


def assert_agreed(masks: Any) -> None:
    """Every process must count the same."""
    digest = hashlib.sha256(b"".join(masks.whole(index).numpy().tobytes() for index in range(len(masks.matrices))))
    found: list[Any] = [None] * PartialState().num_processes
    if len(found) > 1:
        torch.distributed.all_gather_object(found, (digest.hexdigest(), masks.removed_count))
    assert len(set(found)) == 1


def keep(model: PreTrainedModel, path: Path) -> None:
    """Writes the whole model."""
    tensors = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if PartialState().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def main(folder: Path, resumed: bool) -> None:
    count = PartialState(cpu=True).num_processes
    if resumed:  # by however many processes it was begun
        for name in CONFIGS:
            keep(train(folder, name, resumed=True), folder / f"{name}-resumed-{count}.safetensors")
        return
    for name in CONFIGS:
        keep(train(folder, name), folder / f"{name}-{count}.safetensors")
    for name in ACCUMULATED:
        keep(train(folder / "accumulated", name, accumulated=2), folder / f"{name}-accumulated-{count}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), resumed="resumed" in sys.argv)
    end_processes()
