"""Command-line options made of dataclass fields: a command's own arguments and the settings of every strategy.

A new strategy needs no change here: its configuration's fields become options, their help texts the options' help.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar

import typer

from ..config import AutoPruningConfig, PruningConfig, config_class_of
from .settings import default_text, settings_at_once

# What "none" on the command line becomes until the configuration is made: an option that is absent is None there.
_NONE = object()

T = TypeVar("T")


def with_options(
    *classes: Any, strategies: bool = False, budgets: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for every field of some dataclasses.

    Args:
        *classes: dataclasses with `help` metadata, and a `panel` that their options are listed under.
        strategies: add the settings of every strategy that prunes at one go; a name that is there already is left
            alone.
        budgets: whether budgets are among these.

    Returns:
        A decorator for a function that ends in `**options`, where it receives what was given on the command line and
        nothing else; `take` makes the dataclasses of it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        parameters = {
            name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        own = set(parameters)
        for name, parameter in _described(classes, strategies, budgets):
            parameters.setdefault(name, parameter)

        def run(**values: Any) -> None:
            command(**{name: value for name, value in values.items() if name in own or value not in (None, [])})

        run.__doc__, run.__name__ = command.__doc__, command.__name__
        run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        # Typer reads a command's options from its signature.
        run.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
        return run

    return decorate


def take(kind: type[T], options: dict[str, Any]) -> T:
    """A dataclass made of the options that it has fields for, which leave the dictionary."""
    names = [item.name for item in fields(kind) if item.name in options]  # type: ignore[arg-type]
    return kind(**{name: options.pop(name) for name in names})


def make_config(strategy: str, settings: Mapping[str, Any], **shared: Any) -> PruningConfig:
    """A strategy's configuration from the options given on the command line.

    Args:
        strategy: the strategy's name.
        settings: those that are left once `take` has made the command's own arguments.
        shared: values of the command's own options, passed on if the strategy has a setting of that name.

    Raises:
        PruningError: an unknown strategy, a setting that it does not have, or a value it does not take.
    """
    known = {item.name for item in fields(config_class_of(strategy))}
    values = {name: None if value is _NONE else value for name, value in settings.items()}
    passed_on = {name: value for name, value in shared.items() if name in known}
    return AutoPruningConfig.for_strategy(strategy, **passed_on, **values)


def _described(classes: tuple[Any, ...], strategies: bool, budgets: bool) -> Iterator[tuple[str, inspect.Parameter]]:
    """Every option's name and parameter."""
    for kind in classes:
        hints = typing.get_type_hints(kind)
        for item in fields(kind):
            help_text = item.metadata.get("help", "") + default_text([item])
            yield item.name, _parameter(item, hints[item.name], help_text, kind.panel)
    for setting in settings_at_once() if strategies else ():
        if setting.budget and not budgets:
            continue
        panel = "Budget: exactly one" if setting.budget else "Pruning"
        yield setting.item.name, _parameter(setting.item, setting.annotated, setting.help_text, panel)


def _parameter(item: Field[Any], annotated: Any, help_text: str, panel: str) -> inspect.Parameter:
    required = item.default is MISSING and item.default_factory is MISSING
    base, optional = _without_none(annotated)
    declaration = f"--{item.name}"
    extra: dict[str, Any] = {}
    if base is bool:
        declaration += f"/--no_{item.name}"
    elif typing.get_origin(base) is list:
        help_text += " Can be repeated."
    elif typing.get_origin(base) is typing.Literal:
        base = str
    elif optional and item.default not in (None, MISSING):
        extra = {"parser": _or_none(base), "metavar": f"{base.__name__}|none"}
    option = typer.Option(declaration, help=help_text, show_default=False, rich_help_panel=panel, **extra)
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[base if required else base | None, option],
    )


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
