"""Where commands write: results to standard output, everything that accompanies them to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

_FILE_WIDTH = 120


def output() -> Console:
    """For results. Where they go to a file or a pipe, lines are not broken at the width of a terminal of 80."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(_FILE_WIDTH, console.width))


def note(text: str, style: str = "") -> None:
    """One remark to the user, whatever brackets it holds."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, style=style))


@contextlib.contextmanager
def quiet_output() -> Iterator[None]:
    """Sends what libraries print to standard error, so that standard output holds the result and nothing else."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def show(*renderables: Any) -> None:
    """Prints tables and the like to standard output."""
    console = output()
    for renderable in renderables:
        console.print(renderable)
