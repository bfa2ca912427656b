"""Names of blocks and modules, written as PEFT's `target_modules` are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from .errors import PruningError


def matching_names(setting: str, patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that one of the patterns means: the end of a name, or a regular expression for all of it.

    Args:
        setting: what the patterns were given as, for the message.
        patterns: each must match something.
        names: all there are.

    Raises:
        PruningError: a pattern that matches nothing, with near names.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if name == pattern or name.endswith(f".{pattern}") or _full_match(pattern, name)}
        if not hits:
            raise PruningError(f"{setting}: {pattern!r} matches nothing. {_near_names(pattern, names)}")
        found |= hits
    return found


def _full_match(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise PruningError(
            f"{pattern!r} is neither the end of a block's name nor a regular expression: {error}."
        ) from error


def _near_names(pattern: str, names: Sequence[str], most: int = 12) -> str:
    """Names like a pattern, or else the first ones there are."""
    ends = {".".join(name.split(".")[start:]) for name in names for start in range(name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, sorted(ends), n=3)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"There are {', '.join(names[:most])}{rest}."
