"""What surgery replaced, so that it can be put back."""

from __future__ import annotations

from typing import Any

from torch import nn

_ABSENT = object()


class UndoLog:
    """What surgery replaced, so that it can be put back; holds references, not copies."""

    def __init__(self) -> None:
        self._entries: list[tuple[nn.Module, str, Any]] = []
        self._changed = True

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Sets an attribute, parameter or submodule of the module itself and remembers what was there."""
        self._entries.append((module, name, _own(module, name)))
        setattr(module, name, value)

    def swap(self) -> None:
        """Exchanges what is there for what was there; a second call exchanges them again."""
        swapped = []
        for module, name, value in reversed(self._entries):
            swapped.append((module, name, _own(module, name)))
            if value is _ABSENT:
                delattr(module, name)
            else:
                setattr(module, name, value)
        self._entries = swapped
        self._changed = not self._changed

    def roll_back(self) -> None:
        """Restores what was there before the first change, wherever earlier swaps left the model."""
        if self._changed:
            self.swap()


def _own(module: nn.Module, name: str) -> Any:
    """The module's own attribute, parameter or submodule, not one of its class."""
    return {**module.__dict__, **module._parameters, **module._modules}.get(name, _ABSENT)
