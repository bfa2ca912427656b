"""Weight matrices of which every process holds some rows: what FSDP2 (`fully_shard`) makes of parameters.

A sharded parameter is a DTensor. It has the shape of the whole matrix; the rows that a process holds are an ordinary
tensor in it, and the processes hold them in their order. Whatever is computed weight by weight is computed on a
process's own rows, and only numbers (counts, sums) are exchanged: what stays and what goes is decided without any
process ever having a whole matrix. Whole matrices come together one at a time, where something is saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from .errors import PruningError
from .processes import is_first_process


class Shards:
    """The processes that hold the rows of the same matrices, in the order of the rows.

    Every process must call the methods in the same order.

    Args:
        group: torch's process group; None where one process holds all, then there is nothing to exchange.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self._group = group

    @property
    def several(self) -> bool:
        """Whether the matrices are sharded."""
        return self._group is not None

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the processes, in place."""
        if self._group is not None:
            torch.distributed.all_reduce(tensor, group=self._group)
        return tensor

    def allotted(self, counts: torch.Tensor, number: int) -> list[int]:
        """How many of the first `number` things are this process's.

        Args:
            counts: how many things this process has in each matrix, integers `[matrices]`. They are in order: those of
                the first matrix before those of the second, and in each those of the first process before those of
                the second.
            number: how many are to be shared out.

        Returns:
            One number per matrix, at most its count.
        """
        rank, table = 0, counts[:, None]
        if self._group is not None:
            rank = torch.distributed.get_rank(self._group)
            columns = [torch.empty_like(counts) for _ in range(torch.distributed.get_world_size(self._group))]
            torch.distributed.all_gather(columns, counts.contiguous(), group=self._group)
            table = torch.stack(columns, dim=1)
        before = table.flatten().cumsum(0).view_as(table) - table
        found: list[int] = torch.minimum((number - before).clamp_min(0), table)[:, rank].tolist()
        return found


WHOLE = Shards()


def count_true(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """How many are True in each mask that this process has, integers `[masks]` on the first one's device.

    A tensor, because reading a number makes the host wait for the device: it is read, or added up, once for all.
    """
    return torch.stack([mask.count_nonzero().to(masks[0].device) for mask in masks])


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether this process holds a part of a tensor only."""
    return isinstance(parameter, DTensor)


def own_rows(parameter: torch.Tensor) -> torch.Tensor:
    """The rows that this process holds, in the parameter's own memory and outside of any graph; maybe all of them."""
    found = parameter.detach()
    return found.to_local() if isinstance(found, DTensor) else found


def rows_of(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Those rows of a matrix that this process holds of a parameter of the same shape; a view."""
    return whole.narrow(0, first_row(parameter), len(own_rows(parameter)))


def first_row(parameter: torch.Tensor) -> int:
    """The number in the whole matrix of the first row that this process holds."""
    if not isinstance(parameter, DTensor):
        return 0
    mesh, axis = parameter.device_mesh, _sharded_axis(parameter)
    # As torch.chunk has it: the last ones get fewer rows, or none.
    rows = -(-len(parameter) // mesh.size(axis))
    return min(rows * mesh.get_local_rank(axis), len(parameter))


def gathered(rows: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The whole matrix, on every process, of the rows that each has; of a whole parameter the rows as they are.

    Args:
        rows: this process's, of the shape of `own_rows(parameter)` and of any type.
        parameter: says how the matrix is sharded.
    """
    if not isinstance(parameter, DTensor):
        return rows
    if rows.dtype == torch.bool:  # which not every backend can send
        return gathered(rows.view(torch.uint8), parameter).view(torch.bool)
    rows = rows.to(own_rows(parameter).device)
    mesh, placements = parameter.device_mesh, parameter.placements
    whole = DTensor.from_local(rows, mesh, placements, shape=parameter.shape, stride=parameter.stride())
    return whole.full_tensor()


def collected(rows: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor | None:
    """The whole matrix on the CPU of the first process, and None on the others; a whole parameter's on each."""
    whole = gathered(rows, parameter)
    return whole.cpu() if not is_sharded(parameter) or is_first_process() else None


def shards_of(named: Iterable[tuple[str, torch.Tensor]]) -> Shards:
    """The processes that share some parameters.

    Args:
        named: the parameters, each with what to call it.

    Raises:
        PruningError: they are not shared alike.
    """
    groups: dict[Any, str] = {}
    for name, parameter in named:
        group = None
        if isinstance(parameter, DTensor):
            group = parameter.device_mesh.get_group(_sharded_axis(parameter))
        groups.setdefault(group, name)
    if len(groups) > 1:
        one, other = list(groups.values())[:2]
        raise PruningError(
            f"{one} and {other} are not sharded over the same processes. Shard the whole model with fully_shard on one"
            " mesh, or leave one of them out with exclude_modules."
        )
    return Shards(next(iter(groups), None))


def has_shards(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded a model's parameters."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's state dict of whole tensors, on the CPU of the first process; empty on the others, which must ask."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return found


def put_shards_back(model: nn.Module) -> None:
    """Gives a model its sharded parameters, where a forward pass without a backward pass has left whole copies."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_rows(name: str, parameter: torch.Tensor) -> None:
    """Raises a PruningError where a parameter is shared out over devices in another way than by rows."""
    placements = parameter.placements if isinstance(parameter, DTensor) else (Shard(0),)
    if hasattr(parameter, "ds_id") or [item for item in placements if not item.is_replicate()] != [Shard(0)]:
        raise PruningError(
            f"{name} is spread over several devices by tensor parallelism or DeepSpeed ZeRO-3, which is not supported"
            " where single weights are pruned. Train with FSDP2 (fully_shard), with DDP, or on one device."
        )


def _sharded_axis(parameter: DTensor) -> int:
    """The axis of the mesh along which the rows are; along others they are the same."""
    return next(axis for axis, item in enumerate(parameter.placements) if not item.is_replicate())
