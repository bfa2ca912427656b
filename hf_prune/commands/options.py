"""The settings of every registered strategy as options of a command, read from their configuration classes.

A new strategy needs no change here: its dataclass fields become options, their help texts the options' help.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any

import typer

from ..config import AutoPruningConfig, PruningConfig, StructuredPruningConfig, config_class_of, strategy_names

# What "none" on the command line becomes until the configuration is made: an option that is absent is None there.
_NONE = object()


def with_strategy_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command an option for every setting of every strategy.

    Args:
        command: a function whose last parameter is `**settings`; an option it has by itself is left alone.

    Returns:
        The command as typer is to see it. It receives the settings that were given on the command line, no others.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _setting_annotations().items()
        if name not in hints
    ]
    names = {parameter.name for parameter in added}

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in names}
        command(**values, **{name: value for name, value in given.items() if value not in (None, [])})

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    # Typer reads a command's options from its signature.
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    return run


def make_config(strategy: str, settings: Mapping[str, Any], **shared: Any) -> PruningConfig:
    """A strategy's configuration from the options given on the command line.

    Args:
        strategy: the strategy's name.
        settings: the given ones, as `with_strategy_options` passes them.
        shared: values of the command's own options, passed on if the strategy has a setting of that name.

    Raises:
        PruningError: an unknown strategy, a setting that it does not have, or a value it does not take.
    """
    known = {item.name for item in fields(config_class_of(strategy))}
    values = {name: None if value is _NONE else value for name, value in settings.items()}
    return AutoPruningConfig.for_strategy(
        strategy, **{name: value for name, value in shared.items() if name in known}, **values
    )


def _setting_annotations() -> dict[str, Any]:
    """What typer needs to know of each setting; one that several strategies share is described once."""
    annotations: dict[str, Any] = {}
    for strategy in strategy_names():
        config_class = config_class_of(strategy)
        types_of = typing.get_type_hints(config_class)
        for item in fields(config_class):
            if item.init and item.name not in annotations:
                annotations[item.name] = _annotation(item, types_of[item.name])
    return annotations


def _annotation(item: Field[Any], annotated: Any) -> Any:
    base, optional = _without_none(annotated)
    default = item.default if item.default is not MISSING else None
    help_text = item.metadata.get("help", "")
    extra: dict[str, Any] = {}
    declaration = f"--{item.name}"
    if default is not None:
        help_text += f" [default: {str(default).lower() if base is bool else default}]"
    if base is bool:
        declaration += f"/--no_{item.name}"
    elif typing.get_origin(base) is list:
        help_text += " (can be repeated)"
    elif typing.get_origin(base) is typing.Literal:
        base = str
    elif optional and default is not None:
        extra = {"parser": _or_none(base), "metavar": f"{base.__name__}|none"}
    panel = "Budget: exactly one" if item.name in StructuredPruningConfig.BUDGETS else "Settings of the strategy"
    option = typer.Option(declaration, help=help_text, show_default=False, rich_help_panel=panel, **extra)
    return Annotated[base | None, option]


def _without_none(annotated: Any) -> tuple[Any, bool]:
    """The type without `None`, and whether None was allowed; of several types the first one."""
    if typing.get_origin(annotated) not in (typing.Union, types.UnionType):
        return annotated, False
    parts = [part for part in typing.get_args(annotated) if part is not types.NoneType]
    return parts[0], len(parts) < len(typing.get_args(annotated))


def _or_none(base: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return _NONE if text.lower() == "none" else base(text)

    return parse
