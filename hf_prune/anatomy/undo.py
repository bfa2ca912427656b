"""What surgery replaced, so that it can be put back."""

from __future__ import annotations

from typing import Any

from torch import nn

_ABSENT = object()


class UndoLog:
    """What surgery replaced, so that it can be put back; holds references, not copies."""

    def __init__(self) -> None:
        self._entries: list[tuple[Any, str, Any]] = []
        self._changed = True

    def set(self, holder: Any, name: str, value: Any) -> None:
        """Sets an attribute, parameter or submodule of a module, or an entry of a config; remembers what was there."""
        self._entries.append((holder, name, _own(holder, name)))
        setattr(holder, name, value)

    def swap(self) -> None:
        """Exchanges what is there for what was there; a second call exchanges them again."""
        swapped = []
        for holder, name, value in reversed(self._entries):
            swapped.append((holder, name, _own(holder, name)))
            if value is _ABSENT:
                delattr(holder, name)
            else:
                setattr(holder, name, value)
        self._entries = swapped
        self._changed = not self._changed

    def roll_back(self) -> None:
        """Restores what was there before the first change, wherever earlier swaps left the model."""
        if self._changed:
            self.swap()


def _own(holder: Any, name: str) -> Any:
    """The holder's own attribute, parameter or submodule, not one of its class."""
    inside = {**holder._parameters, **holder._modules} if isinstance(holder, nn.Module) else {}
    return {**vars(holder), **inside}.get(name, _ABSENT)
