"""Fill the reference pages of the site from the code; a hook of mkdocs.yml.

A page has ``<!-- reference: NAME -->`` where the tables of `TABLES` go. They are made when the site
is built, so they are never out of date.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

from pages.published import table

from image_classification.__main__ import main as run_verb
from image_classification.cli.launch import build_parser
from image_classification.config.catalogue import load_catalogue
from image_classification.config.keys import KEYS, Key
from image_classification.config.options import OPTIONS
from image_classification.config.schema import MODES, SECTIONS

_MARK = re.compile(r"<!-- reference: ([\w-]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every mark of a page by its tables; called by mkdocs for each page.

    Raises:
        KeyError: no tables of that name.
    """
    return _MARK.sub(lambda found: TABLES[found[1]](), markdown)


def options() -> str:
    """Return one table per group of launch.py's options."""
    keys = {flag: option.key for option in OPTIONS for flag in option.flags}
    parts = []
    for group in build_parser()._action_groups:
        rows = []
        for action in group._group_actions:
            if not action.option_strings or action.dest == "help":
                continue
            shown = [f"`{flag}`" for flag in action.option_strings]
            value = f"`{action.metavar}`" if action.metavar and action.nargs != 0 else ""
            key = next((keys[flag] for flag in action.option_strings if flag in keys), "")
            link = f"[`{key}`](settings.md#{_anchor(key)})" if key else ""
            rows.append((" ".join(shown), value, (action.help or "").replace("|", "\\|"), link))
        if rows:
            title = (group.title or "").partition(" (")[0].capitalize()
            parts.append(f"## {title}\n\n{table(('Option', 'Value', 'Meaning', 'Setting'), rows)}")
    return "\n\n".join(parts)


def settings() -> str:
    """Return one table per section of the schema."""
    parts = []
    for section, cls in SECTIONS.items():
        rows = [
            (f'`{key.name}` <a id="{_anchor(key.name)}"></a>', _default(key), _values(key), key.doc)
            for key in KEYS.values()
            if key.section == section
        ]
        introduction = (cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ").strip()
        settings_table = table(("Setting", "Default", "Values", "Meaning"), rows)
        parts.append(f"## {section}\n\n{introduction}\n\n{settings_table}")
    return "\n\n".join(parts)


def names() -> str:
    """Return every name, and every runnable combination by model."""
    catalogue = load_catalogue()
    lists = {
        "models": catalogue.models,
        "platforms": catalogue.platforms,
        "precisions": catalogue.precisions,
        "modes": MODES,
        "recipes": catalogue.recipes,
    }
    rows = [(kind, ", ".join(f"`{name}`" for name in held)) for kind, held in lists.items()]
    runs: dict[tuple[str, str, str], list[str]] = {}
    for run in catalogue.runs():
        shown = f"**{run.recipe}**" if run.default else run.recipe
        runs.setdefault((run.model, run.platform, run.precision), []).append(shown)
    combinations = [(*key, ", ".join(recipes)) for key, recipes in runs.items()]
    return (
        f"{table(('Kind', 'Names'), rows)}\n\n## Runnable combinations\n\n"
        "The default recipe is bold.\n\n"
        f"{table(('Model', 'Platform', 'Precision', 'Recipes'), combinations)}"
    )


COMMANDS = {
    "dataset": ("check", "prepare", "pack", "fake", "demo"),
    "doctor": ("",),
    "report": ("combine", "compare", "history", "plots"),
}


def commands() -> str:
    """Return what ``--help`` of every command prints."""
    parts = []
    for verb, names in COMMANDS.items():
        for name in names:
            words = f"{verb} {name}".split()
            parts.append(f"## {' '.join(words)}\n\n```text\n{_help(words)}\n```")
    return "\n\n".join(parts)


def _help(words: list[str]) -> str:
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
        mock.patch.dict(os.environ, COLUMNS="100"),
        mock.patch("sys.argv", ["image-classification"]),
    ):
        run_verb([*words, "--help"])
    return printed.getvalue().strip()


TABLES: dict[str, Callable[[], str]] = {
    "options": options,
    "commands": commands,
    "settings": settings,
    "names": names,
}


def _default(key: Key) -> str:
    if key.computed:
        return "*computed*"
    if not key.has_default:
        return "*required*"
    if key.default is None:
        return "`null`"
    if isinstance(key.default, bool):
        return f"`{str(key.default).lower()}`"
    if isinstance(key.default, tuple):
        return f"`[{', '.join(map(str, key.default))}]`"
    return f"`{key.default}`" if key.default != "" else "empty"


def _values(key: Key) -> str:
    if key.choices:
        values = ", ".join(f"`{choice}`" for choice in key.choices)
    elif key.pattern:
        values = f"text matching `{key.pattern}`".replace("|", "\\|")
    else:
        values = {int: "integer", float: "number", bool: "`true`, `false`", str: "text"}[key.kind]
        values += "".join(f" or `{word}`" for word in key.words)
        if key.min is not None and key.max is not None:
            values += f", {key.min:,g} to {key.max:,g}"
        elif key.min is not None:
            values += f" ≥ {key.min:g}"
    if key.length is not None:
        values = f"list of {key.length or ''} {values}".replace("  ", " ")
    return f"{values}; or `null`" if key.optional else values


def _anchor(key: str) -> str:
    return key.replace(".", "-").replace("_", "-")
