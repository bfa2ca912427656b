"""Which models are around a module."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedModel


def models_around(model: PreTrainedModel, path: str) -> Iterator[tuple[str, PreTrainedModel]]:
    """The models around the module at `path`, itself included, with their paths; outermost first."""
    parts = path.split(".")
    for end in range(len(parts) + 1):
        name = ".".join(parts[:end])
        module = model.get_submodule(name)
        if isinstance(module, PreTrainedModel):
            yield name, module


def holder_of(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The innermost model around the module at `path`."""
    return list(models_around(model, path))[-1][1]
