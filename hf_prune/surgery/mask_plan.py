"""Which single weights stay, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import PruningError
from ..gates.bits import pack_mask, unpack_mask
from ..whole_files import written_whole

MASKS_FILE = "pruning_masks.safetensors"


@dataclass(frozen=True)
class MaskPlan:
    """One mask per pruned matrix.

    Attributes:
        masks: bool tensors by parameter name, on the CPU, True where a weight stays.
    """

    masks: Mapping[str, torch.Tensor]

    def save(self, folder: Path) -> None:
        """Writes the masks, a bit for each weight."""
        shapes = json.dumps({name: list(mask.shape) for name, mask in self.masks.items()})
        with written_whole(folder / MASKS_FILE) as temporary:
            save_file({name: pack_mask(mask) for name, mask in self.masks.items()}, temporary, {"shapes": shapes})

    @classmethod
    def load(cls, folder: str | Path) -> MaskPlan:
        """Reads what `save` wrote.

        Raises:
            PruningError: there is no such file, or it is damaged.
        """
        path = Path(folder) / MASKS_FILE
        if not path.is_file():
            raise PruningError(f"{folder} holds no {MASKS_FILE}.")
        try:
            with safe_open(path, "pt") as file:
                shapes = json.loads((file.metadata() or {}).get("shapes", "{}"))
                names = list(file.keys())
                if (
                    not isinstance(shapes, dict)
                    or shapes.keys() != set(names)
                    or not all(_is_shape(shape) for shape in shapes.values())
                ):
                    raise PruningError(f"{path}: the masks' shapes are missing or damaged.")
                return cls({name: unpack_mask(file.get_tensor(name), shapes[name], name) for name in names})
        except PruningError:
            raise
        except (SafetensorError, ValueError) as error:
            raise PruningError(f"{path} is damaged: {error}") from error


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
