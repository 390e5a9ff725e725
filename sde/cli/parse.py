"""From words on the command line to a configuration: recipe, key=value, flags.

sde train moons steps=500 sde=EDM model.width=64 --seed 1
          ^ recipe        ^ key=value             ^ flag
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sde.cli.choice import Choice, Text, choose, convert, kind_of
from sde.cli.mistakes import Mistake, unknown

Config = TypeVar("Config")
RECIPES = Path(__file__).parent / "recipes"

USAGE = {
    "train": "[RECIPE] [key=value ...]",
    "sample": "CHECKPOINT [key=value ...]",
    "restore": "TASK IMAGE [key=value ...]",
    "plot": "FILE [key=value ...]",
    "demo": "[images] [key=value ...]",
}

OVERRIDE = re.compile(r"(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)", re.DOTALL)


def words(argv: Sequence[str]) -> tuple[str | None, dict[str, str], list[str]]:
    """The subject (a recipe or a file), the overrides and the flags of a command line.

    Example:
        >>> words(["moons", "steps=5", "--seed", "1", "sde.name=EDM"])
        ('moons', {'steps': '5', 'sde.name': 'EDM'}, ['--seed', '1'])
    """
    subject, overrides, flags = None, {}, []
    for i, word in enumerate(argv):
        match = OVERRIDE.fullmatch(word)
        if match:
            overrides[match["key"]] = Text(match["value"])
        elif i == 0 and not word.startswith("-"):
            subject = word
        else:
            flags.append(word)
    return subject, overrides, flags


def read_recipe(name: str) -> tuple[str, dict[str, Any]]:
    """Stem and content of a recipe: a path, or the name of one that is shipped."""
    shipped = {p.stem: p for p in sorted(RECIPES.glob("*.toml"))}
    path = Path(name)
    if not path.is_file():
        path = shipped.get(name.removesuffix(".toml"), path)
    if not path.is_file():
        here = [str(p) for p in sorted(Path().glob("*.toml")) if p.name != "pyproject.toml"]
        raise unknown("recipe", name, [*shipped, *here], "For another data set say data=circles; see `sde list`")
    try:
        return path.stem, tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Mistake(f"recipe {path} is no TOML: {error}") from error


def overlay(tree: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """A recipe with overrides put in; names first, as a new name drops the arguments of the old one.

    Example:
        >>> overlay({"sde": {"name": "VP", "beta_max": 10.0}}, {"sde.sigma_max": "10", "sde": "EDM"})
        {'sde': {'name': 'EDM', 'sigma_max': '10'}}
    """
    tree = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    for key, value in sorted(overrides.items(), key=lambda item: (item[0].count("."), not item[0].endswith(".name"))):
        *path, last = key.split(".")
        at = tree
        for part in path:
            inner = at.get(part, {})
            at[part] = dict(inner) if isinstance(inner, Mapping) else {"name": inner}
            at = at[part]
        old = at.get(last) if isinstance(at.get(last), Mapping) else {}
        if last == "name" and at.get("name") not in (None, value):
            at.clear()
        at[last] = {"name": value} if old and old.get("name") != value else value
    return tree


def from_tree(cls: type[Config], tree: Mapping[str, Any]) -> Config:
    """A configuration from nested mappings; what is not there, or of another type, is a mistake."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in fields:
            raise unknown("key", key, fields)
        default: Any = fields[key].default
        if Choice not in (hints[key], *typing.get_args(hints[key])):
            if isinstance(value, Mapping):
                inner = [k for k in value if k != "name"] or ["name"]
                raise Mistake(f"{key}.{inner[0]} is not there: {key} is a single value")
            values[key] = convert(value, hints[key], key)
        elif default is None and str(value).lower() == "none":
            values[key] = None
        else:
            values[key] = choose(kind_of(key), value, key, default)
    return cls(**values)


def parse(cls: type[Config], command: str, argv: Sequence[str], recipe: bool = False) -> tuple[str | None, Config]:
    """Subject and configuration of a command; with `recipe` the subject is one, and comes back as its stem."""
    subject, overrides, flags = words(argv)
    tree: dict[str, Any] = {}
    if recipe and subject is not None:
        subject, tree = read_recipe(subject)
    config = from_tree(cls, overlay(tree, overrides))
    if not flags:
        return subject, config
    import tyro

    about = f"sde {command} {USAGE[command]}\n\n{cls.__doc__}\n\nWhat has a --flag can be said as flag=VALUE too."
    config = tyro.cli(cls, args=flags, prog=f"sde {command}", description=about, default=config)
    for f in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        chosen = getattr(config, f.name)
        if isinstance(chosen, Choice):
            choose(kind_of(f.name), chosen.flat(), f.name)  # names that came by flag are checked here
    return subject, config


def to_tree(config: Any) -> dict[str, Any]:
    """A configuration as plain values: what a recipe would say."""
    tree = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    flat = {k: v.flat() if isinstance(v, Choice) else str(v) if isinstance(v, Path) else v for k, v in tree.items()}
    return {k: v for k, v in flat.items() if v is not None}


def to_toml(tree: Mapping[str, Any], above: str = "") -> str:
    """Nested mappings as TOML, single values before tables.

    Example:
        >>> print(to_toml({"sde": {"name": "VP"}, "steps": 5}))
        steps = 5
        <BLANKLINE>
        [sde]
        name = "VP"
    """
    lines = [f"{k} = {json.dumps(v)}" for k, v in tree.items() if not isinstance(v, Mapping)]
    for key, inner in tree.items():
        if isinstance(inner, Mapping):
            lines += ["", f"[{above}{key}]", to_toml(inner, f"{above}{key}.")]
    return "\n".join(lines)
