"""Checks that settings of several configurations share; each refuses with the setting's name and value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from .errors import PruningError


def check_counts(settings: Any, *names: str) -> None:
    """Raises a PruningError where one of the named settings is not a whole number of at least 1 (or None)."""
    check_whole_numbers(settings, **{name: 1 for name in names if getattr(settings, name) is not None})


def check_whole_numbers(settings: Any, /, **least: int) -> None:
    """Raises a PruningError where a setting is not a whole number of at least what is given for it."""
    for name, lowest in least.items():
        number = getattr(settings, name)
        if isinstance(number, bool) or not isinstance(number, int) or number < lowest:
            raise PruningError(f"{name}={number!r} must be a whole number of at least {lowest}.")


def check_not_negative(settings: Any, *names: str) -> None:
    """Raises a PruningError where one of the named settings is not a finite number of at least 0."""
    for name in names:
        number = getattr(settings, name)
        if not is_number(number) or number < 0:
            raise PruningError(f"{name}={number!r} must be a number of at least 0.")


def check_positive(settings: Any, *names: str) -> None:
    """Raises a PruningError where one of the named settings is not a finite number above 0."""
    for name in names:
        number = getattr(settings, name)
        if not is_number(number) or number <= 0:
            raise PruningError(f"{name}={number!r} must be a number above 0.")


def check_flags(settings: Any, *names: str) -> None:
    """Raises a PruningError where one of the named settings is neither True nor False."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, bool):
            raise PruningError(f"{name}={value!r} must be True or False.")


def check_sparsity(settings: Any, *names: str) -> None:
    """Raises a PruningError where one of the named settings is not a number from 0 to below 1."""
    for name in names:
        number = getattr(settings, name)
        if not is_number(number) or not 0 <= number < 1:
            raise PruningError(f"{name}={number!r} must lie in [0, 1): it is the fraction of the weights to remove.")


def check_fraction(settings: Any, *names: str) -> None:
    """Raises a PruningError where one of the named settings is not a number above 0 and at most 1."""
    for name in names:
        number = getattr(settings, name)
        if not is_number(number) or not 0 < number <= 1:
            raise PruningError(f"{name}={number!r} must lie in (0, 1]: it is the fraction to keep.")


def check_choices(settings: Any, /, **choices: Collection[str | None]) -> None:
    """Raises a PruningError where a setting is none of the values that are given for it, None among them or not."""
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value not in tuple(allowed):
            raise PruningError(f"{name}={value!r} is unknown; use one of {', '.join(filter(None, allowed))}.")


def check_unused(settings: Any, where: str, *names: str) -> None:
    """Raises a PruningError where one of the named settings is not at its default, although it would change nothing.

    Args:
        settings: a dataclass.
        where: what makes it so, and what to do instead, in the words of the message.
        names: of settings.
    """
    defaults = {item.name: item.default for item in fields(settings)}
    for name in names:
        value = getattr(settings, name)
        if value != defaults[name]:
            raise PruningError(f"{name}={value!r} says nothing {where}.")


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
