"""Where commands write: results to standard output, everything that accompanies them to standard error."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.text import Text

_FILE_WIDTH = 120

_results: ContextVar[IO[str] | None] = ContextVar("results", default=None)


@contextlib.contextmanager
def quiet_output() -> Iterator[None]:
    """Sends what libraries print to standard error, so that standard output holds what `show` writes and no more."""
    token = _results.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results.reset(token)


def show(result: RenderableType) -> None:
    """Writes a table, or a text as it is, to standard output."""
    if isinstance(result, str):
        (_results.get() or sys.stdout).write(result + "\n")
    else:
        _console().print(result)


def show_json(result: Any) -> None:
    """Writes data on one line to standard output; what is not a finite number is null, which every reader takes."""
    show(json.dumps(_finite(result), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(text: str, style: str = "") -> None:
    """One remark to the user, whatever brackets it holds, to standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, style=style))


def terminal_width() -> int:
    """Columns that a result may take."""
    return _console().width


def _console() -> Console:
    """Lines that go to a file or a pipe are not broken at the width of a terminal."""
    console = Console(file=_results.get(), highlight=False)
    if not console.is_terminal:
        console.width = max(_FILE_WIDTH, console.width)
    return console


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
