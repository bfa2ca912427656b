"""The bitmask format of one matrix, against bits written down one by one, and what a damaged file leads to."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_prune import PruningError
from hf_prune.surgery.bitmask import is_packed, packed, unpacked

Tensors = dict[str, torch.Tensor]


def sparse(shape: tuple[int, ...], share: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Random values of which about `share` are zero, some of them negative zeros."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(shape, generator=generator) >= share
    return (torch.randn(shape, generator=generator) * keep).to(dtype)


def read(tensors: Tensors, folder: Path) -> Tensors:
    """What a file with these tensors holds, after packed matrices are unpacked."""
    save_file(tensors, folder / "weights.safetensors")
    with safe_open(folder / "weights.safetensors", framework="pt") as source:
        slices = {name: source.get_slice(name) for name in tensors}
        return {name: tensor[...] for name, tensor in unpacked(slices, "weights.safetensors").items()}


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(24, 44), min_size=2, max_size=3).map(tuple),
    share=st.sampled_from([0.7, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], share: float, dtype: torch.dtype, seed: int
) -> None:
    weight = sparse(shape, share, dtype, seed)
    tensors = packed("w", weight)
    assert list(tensors) == ["w", "w_bitmask", "w_bitmask_shape"]
    values = [value for value in weight.flatten().tolist() if value != 0]
    assert tensors["w"].tolist() == values
    bits = "".join("1" if value != 0 else "0" for value in weight.flatten().tolist())
    bits += "0" * (-len(bits) % 8)
    assert bytes(tensors["w_bitmask"].tolist()) == bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    back = read(tensors, tmp_path_factory.mktemp("file"))
    assert list(back) == ["w"]
    assert back["w"].dtype == dtype
    assert torch.equal(back["w"], weight)


def test_odd_numbers_in_matrices_survive(tmp_path: Path) -> None:
    weight = torch.zeros(40, 40)
    weight[3, 4:8] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-42])
    back = read(packed("w", weight), tmp_path)["w"]
    assert torch.equal(back.view(torch.int32), weight.view(torch.int32))


def test_packed_matrices_are_read_in_parts(tmp_path: Path) -> None:
    weight = sparse((33, 29), 0.8)
    save_file(packed("w", weight), tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", framework="pt") as source:
        dense = unpacked({name: source.get_slice(name) for name in source.keys()}, "weights")["w"]  # noqa: SIM118
        assert (dense.get_shape(), dense.get_dtype()) == ([33, 29], "F32")
        assert torch.equal(dense[3:9, ::2], weight[3:9, ::2])


@pytest.mark.parametrize(
    "weight",
    [
        sparse((40, 40), 0.05),  # 5 % saved, 3 % lost
        sparse((4, 4), 0.9),  # smaller than two more entries in the header
        sparse((4000,), 0.9),
        torch.zeros(40, 40, dtype=torch.int64),
        torch.zeros(0, 40),
    ],
    ids=["few zeros", "tiny", "vector", "integers", "empty"],
)
def test_what_would_not_be_smaller_stays(weight: torch.Tensor) -> None:
    tensors = packed("w", weight)
    assert list(tensors) == ["w"]
    assert tensors["w"] is weight
    assert not is_packed(tensors)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 7.0), (torch.bfloat16, 5.8), (torch.float16, 5.8)])
def test_size_at_ninety_per_cent(dtype: torch.dtype, least: float, tmp_path: Path) -> None:
    weight = sparse((256, 256), 0.9, dtype)
    save_file({"w": weight}, tmp_path / "dense.safetensors")
    save_file(packed("w", weight), tmp_path / "packed.safetensors")
    dense, small = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("dense", "packed"))
    assert dense / small >= least


def test_other_tensors_pass_through(tmp_path: Path) -> None:
    tensors = {"a_bitmask": torch.zeros(3), "a": torch.ones(2, 2), "scale": torch.tensor(2.0)}
    back = read(tensors | packed("w", sparse((40, 40), 0.9)), tmp_path)
    assert set(back) == {"a_bitmask", "a", "scale", "w"}
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def set_padding(tensors: Tensors) -> None:
    tensors["w_bitmask"][-1] |= 1


def flip_bit(tensors: Tensors) -> None:
    tensors["w_bitmask"][5] ^= 16


def replaced(part: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Tensors], None]:
    """A damage to one of the tensors; None removes it."""

    def damage(tensors: Tensors) -> None:
        changed = change(tensors.pop(part))
        if changed is not None:
            tensors[part] = changed

    return damage


DAMAGES = {
    "mask too short": (replaced("w_bitmask", lambda bits: bits[:-1].clone()), "its bitmask is U8 of shape"),
    "mask too long": (replaced("w_bitmask", lambda bits: torch.cat([bits, bits[:1]])), "its bitmask is U8 of shape"),
    "mask of another type": (replaced("w_bitmask", lambda bits: bits.float()), "its bitmask is F32"),
    "mask missing": (replaced("w_bitmask", lambda bits: None), "no tensor w_bitmask"),
    "values missing": (replaced("w", lambda values: None), "no tensor w"),
    "too few values": (replaced("w", lambda values: values[1:].clone()), "bits set, for"),
    "too many values": (replaced("w", lambda values: torch.cat([values, values])), "bits set, for"),
    "values that are a matrix": (replaced("w", lambda values: values[None]), "its values are F32"),
    "values that are integers": (replaced("w", lambda values: values.long()), "its values are I64"),
    "another bit": (flip_bit, "bits set, for"),
    "padding bits": (set_padding, "bits after the last weight"),
    "larger shape": (replaced("w_bitmask_shape", lambda shape: shape + 10**9), "its bitmask is U8 of shape"),
    "negative shape": (replaced("w_bitmask_shape", lambda shape: -shape), "its shape is"),
    "shape of one number": (replaced("w_bitmask_shape", lambda shape: shape.prod()[None]), "its shape is"),
    "shape that overflows": (
        replaced("w_bitmask_shape", lambda shape: torch.tensor([2**32, 2**32, 2**32])),
        "its bitmask is U8 of shape",
    ),
    "shape of another type": (replaced("w_bitmask_shape", lambda shape: shape.float()), "its shape is F32"),
    "long shape": (replaced("w_bitmask_shape", lambda shape: torch.ones(10**4, dtype=torch.int64)), "its shape is"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    weight = sparse((33, 29), 0.9)
    assert prod(weight.shape) % 8
    tensors = packed("w", weight)
    assert torch.equal(read(tensors, tmp_path)["w"], weight)
    spoil, message = DAMAGES[damage]
    spoil(tensors)
    with pytest.raises(PruningError, match=re.escape(message)) as caught:
        read(tensors, tmp_path)
    assert str(caught.value).startswith("w in weights.safetensors")


def test_lost_shape_leaves_values_that_are_no_matrix(tmp_path: Path) -> None:
    tensors = packed("w", sparse((33, 29), 0.9))
    del tensors["w_bitmask_shape"]
    assert read(tensors, tmp_path)["w"].dim() == 1
    assert set(load_file(tmp_path / "weights.safetensors")) == {"w", "w_bitmask"}
