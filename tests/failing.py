"""Functions that fail after a while, to see what an interruption leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Failing:
    """A function that works a few times and then fails."""

    def __init__(self, works: Callable[..., Any], times: int, error: type[BaseException]) -> None:
        self.works, self.times, self.error = works, times, error

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.times -= 1
        if self.times < 0:
            raise self.error
        return self.works(*arguments, **options)
