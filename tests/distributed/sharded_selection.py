"""Selects weights by scores that are sharded over all processes, and compares with what one process selects of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from accelerate import PartialState
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from hf_prune.budget import allocate_by_score, kth_largest, masks_by_matrix, masks_over, masks_over_all, pattern_mask
from hf_prune.errors import PruningError
from hf_prune.shards import Shards, check_rows, collected, first_row, gathered, own_rows, rows_of, shards_of
from tests.distributed.ending import end_processes

SHAPES = ((7, 5), (1, 3), (12, 4), (2, 3, 4), (5, 8))  # some processes have no rows of some matrices


def scores_of(kind: str) -> list[torch.Tensor]:
    """The same on every process: numbers, or few different ones, so that most are equal to others."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return drawn if kind == "numbers" else [score.round() for score in drawn]


def check_selections(sharded: Sequence[torch.Tensor], whole: Sequence[torch.Tensor], shards: Shards) -> None:
    own = [own_rows(score) for score in sharded]

    def compare(masks: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
        for mask, score, other in zip(masks, sharded, expected, strict=True):
            assert torch.equal(gathered(mask, score), other)

    total = sum(score.numel() for score in whole)
    in_order = torch.cat([score.flatten() for score in whole]).sort(descending=True, stable=True)
    for keep in (0, 1, 17, 60, total - 1, total):
        found = masks_over(own, keep, shards)
        compare(found, masks_over(whole, keep))
        flat = torch.cat([gathered(mask, score).flatten() for mask, score in zip(found, sharded, strict=True)])
        assert set(flat.nonzero().flatten().tolist()) == set(in_order.indices[:keep].tolist())
        if keep:
            assert kth_largest(own, keep, shards) == float(in_order.values[keep - 1])
    for sparsity in (0.0, 0.3, 0.5, 0.9):
        compare(masks_by_matrix(own, sparsity, shards), masks_by_matrix(whole, sparsity))
        compare(masks_over_all(own, sparsity, shards), masks_over_all(whole, sparsity))
    assert torch.equal(gathered(pattern_mask(own[2], 2, 4, shards=shards), sharded[2]), pattern_mask(whole[2], 2, 4))
    assert allocate_by_score(own, 0.4, shards=shards) == pytest.approx(allocate_by_score(whole, 0.4))


def check_rows_of(sharded: Sequence[torch.Tensor], whole: Sequence[torch.Tensor]) -> None:
    for score, expected in zip(sharded, whole, strict=True):
        assert torch.equal(rows_of(expected, score), own_rows(score))
        assert first_row(score) + len(own_rows(score)) <= len(expected)
        kept = collected(own_rows(score), score)
        assert (kept is None) == (PartialState().process_index > 0)
        assert kept is None or torch.equal(kept, expected)


def check_refusals(mesh: DeviceMesh, shards: Shards) -> None:
    """All processes refuse what one cannot do; otherwise the others would wait for it."""
    score = torch.ones(4, 4)
    if PartialState().process_index == 1:
        score[0, 0] = float("nan")
    refused(lambda: masks_over([score], 3, shards), "not numbers")
    for placement in (Shard(1), Replicate()):
        other = distribute_tensor(torch.ones(4, 4), mesh, [placement])
        refused(partial(check_rows, "the.matrix", other), "the.matrix is spread over several devices")
    rows = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])
    check_rows("the.matrix", rows)
    refused(lambda: shards_of([("one", rows), ("other", torch.ones(4, 4))]), "one and other are not sharded")


def refused(action: Callable[[], object], text: str) -> None:
    with pytest.raises(PruningError, match=text):
        action()


def main() -> None:
    mesh = init_device_mesh("cpu", (PartialState(cpu=True).num_processes,))
    for kind in ("numbers", "ties"):
        whole = scores_of(kind)
        sharded = [distribute_tensor(score, mesh, [Shard(0)]) for score in whole]
        shards = shards_of((str(index), score) for index, score in enumerate(sharded))
        check_rows_of(sharded, whole)
        check_selections(sharded, whole, shards)
    check_refusals(mesh, shards)


if __name__ == "__main__":
    main()
    end_processes()
