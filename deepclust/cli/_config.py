"""Settings as TOML: every flag by its name, parameters of the method in the table [set].

    data = "X.npy"
    method = "dec"
    n-clusters = 10

    [set]
    latent_dim = 20

A file stands in the place of the flags; those on the command line win, one by one, and so do
`--set` over the table. TOML has no null: the text "null" stands for it.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

# Flags that say what the caller wants to see, not what is done.
_ON_THE_LINE = ("config", "help", "json")
_TABLE = "deepclust.set"


def _take(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of the command's parameters."""
    if path is None:
        return
    known: dict[str, click.Parameter] = {}
    for parameter in context.command.get_params(context):
        for names in (parameter.opts, parameter.secondary_opts):
            if names:
                known[max(names, key=len).lstrip("-")] = parameter
    for name in _ON_THE_LINE:
        known.pop(name, None)
    defaults: dict[str, Any] = {}
    for name, value in _read(path).items():
        if name not in known:
            raise click.UsageError(f"{path}: there is no {name!r}; {nearest(name, known)}")
        parameter = known[name]
        if name == "set":
            if not isinstance(value, dict):
                raise click.UsageError(f"{path}: set: got {value!r}; it takes a table, [set]")
            context.meta[_TABLE] = _without_null(value)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            if not isinstance(value, bool):
                raise click.UsageError(f"{path}: {name}: got {value!r}; it takes true or false")
            on = f"--{name}" not in parameter.secondary_opts
            defaults[str(parameter.name)] = value is on
        elif isinstance(value, list) and getattr(parameter, "multiple", False):
            defaults[str(parameter.name)] = [str(item) for item in value]
        elif isinstance(value, (bool, list, dict)):
            raise click.UsageError(f"{path}: {name}: got {value!r}; it takes one value")
        else:
            defaults[str(parameter.name)] = str(value)  # as on the line: click reads and checks it
    context.default_map = defaults


config_option = click.option(
    "--config",
    metavar="FILE.toml",
    type=click.Path(dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_take,
    help="Read flags and DATA from a file; what is given here wins.",
)


def given(assignments: Iterable[str]) -> dict[str, Any]:
    """Parameters of the method: those of the file's table, and over them those of --set.

    A value on the line is read as JSON where it is JSON, else as text.
    """
    context = click.get_current_context(silent=True)
    parameters = dict(context.meta.get(_TABLE, {})) if context is not None else {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set: got {assignment!r}; it takes NAME=VALUE")
        try:
            parameters[name] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name] = text
    return parameters


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, for an error."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def read_settings(path: Path) -> dict[str, Any]:
    """What `toml` wrote."""
    settings = _read(path)
    if "set" in settings:
        settings["set"] = _without_null(settings["set"])
    return settings


def toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML, tables last."""
    lines = [f"{k} = {_value(v)}" for k, v in settings.items() if not isinstance(v, Mapping)]
    for name, table in settings.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{name}]", *(f"{_text(k)} = {_value(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    with open(path, "rb") as file:
        try:
            return tomllib.load(file)
        except ValueError as error:
            raise click.UsageError(f"{path}: it is no TOML: {error}") from None


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    return None if value == "null" else value


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, (int, float)) else _text(value)


def _text(value: object) -> str:
    # TOML's escapes are JSON's, but for characters beyond U+FFFF and for the last of ASCII.
    text = "null" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
