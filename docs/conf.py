"""How the documentation is built: Sphinx, MyST-NB, furo; offline, formulas as MathML, a page for each room."""

from __future__ import annotations

import html
import importlib
import inspect
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.pop("MPLBACKEND", None)  # notebooks show their figures

import sde  # noqa: E402

logger = logging.getLogger(__name__)

project = "sde"
copyright = "the sde contributors"
version = release = sde.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
default_role = "py:obj"
nitpicky = False

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# Notebooks run once, until their code changes. SDE_SMOKE=1 runs them small, SDE_DOCS_NOTEBOOKS=off not at all.
nb_execution_mode = os.environ.get("SDE_DOCS_NOTEBOOKS", "cache")
nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = True
toc_object_entries_show_parents = "hide"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_use_admonition_for_references = False

html_theme = "furo"
html_title = "sde"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False


# Formulas: MathML, which browsers draw by themselves. No script, no font, no network.


def _mathml(translator: Any, node: nodes.Node, block: bool) -> None:
    try:
        made = _touched_up(tex2mathml(node.astext(), as_block=block))
    except MathError as error:
        logger.warning("formula: %s", error, location=node)
        made = html.escape(node.astext())
    translator.body.append(f'<div class="math">{made}</div>' if block else made)
    raise nodes.SkipNode


def _touched_up(mathml: str) -> str:
    """What docutils makes, with a space after a function's name, and subscripts beside accented letters, not below."""
    tree = ElementTree.fromstring(mathml.replace("&ApplyFunction;", "\u2061"))
    for parent in list(tree.iter()):
        for k, child in enumerate(list(parent)):
            if child.text == "\u2061" and k + 1 < len(parent) and parent[k + 1].text != "(":
                parent[k] = ElementTree.Element("mspace", width="0.17em")
            if child.tag.endswith("munderover") and (child[2].text or "").strip() in ACCENTS:
                letter, below, accent = child
                subscript, over = ElementTree.Element("msub"), ElementTree.Element("mover", accent="true")
                over.extend([letter, accent])
                subscript.extend([over, below])
                parent[k] = subscript
    return ElementTree.tostring(tree, encoding="unicode")


ACCENTS = ("ˉ", "ˆ", "˜", "˙", "_")
ElementTree.register_namespace("", "http://www.w3.org/1998/Math/MathML")


# Docstrings: what is plain text there stays plain text.


def _plain(what: str, lines: list[str]) -> list[str]:
    """Escape what reStructuredText would take for markup, and keep displayed formulas and tables as they stand."""
    out: list[str] = []
    literal = example = False
    for line in lines:
        if re.match(r"\s*Example:", line):
            example = True
        indented = line.startswith("    ") and not example and what == "module"
        table = line.startswith("|")
        if (indented or table) and not literal:
            out += ["", ".. code-block:: text", ""]
            literal = True
        elif literal and line and not (indented or table):
            literal = False
            out.append("")
        if literal:
            out.append("    " + line.removeprefix("    ") if line else "")
        elif ">>>" in line or line.lstrip().startswith("..."):
            out.append(line)
        else:
            out.append(_escaped(line))
    return out


def _escaped(line: str) -> str:
    """A line of prose with stars and bars escaped outside `code`; the star of a list stays one."""
    line = re.sub(r"(?<!`)`(\.\w+)`(?!`)", r"``\1``", line)  # an attribute of whatever is meant, no name to link to
    bullet, line = re.match(r"(\s*\* )?(.*)", line).groups("")  # pyright: ignore[reportOptionalMemberAccess]
    parts = re.split(r"(`+[^`]*`+)", line)
    return bullet + "".join(p if p.startswith("`") else re.sub(r"(?<!\\)([|*])", r"\\\1", p) for p in parts)


def _docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = _plain(what, lines)


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what has no docstring of its own: an override says no more than what it overrides."""
    target = inspect.unwrap(obj.fget) if isinstance(obj, property) and obj.fget else obj
    if isinstance(obj, classmethod | staticmethod):
        target = obj.__func__
    doc = getattr(target, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") or (callable(target) and not doc) else None


# The reference: a room's public names under the module that defines them, its docstring first.


class Room(SphinxDirective):
    """`.. room:: sde.forward`: everything public in a room, by module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        room = importlib.import_module(self.arguments[0])
        lines: list[str] = []
        for module, names in by_module(room).items():
            title = f"``{module}``"
            lines += ["", title, "-" * len(title), "", f".. automodule:: {module}", "   :no-index:", ""]
            for name in names:
                lines += _entry(room, name)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def public(room: ModuleType) -> list[str]:
    """Names that a room offers: its `__all__`, or the functions and classes that it defines."""
    own = [n for n, o in vars(room).items() if inspect.isroutine(o) or inspect.isclass(o)]
    mine = [n for n in own if not n.startswith("_") and vars(room)[n].__module__ == room.__name__]
    return list(getattr(room, "__all__", mine))


def by_module(room: ModuleType) -> dict[str, list[str]]:
    """Public names of a room, grouped by the module that defines them."""
    groups: dict[str, list[str]] = {}
    for name in public(room):
        obj = getattr(room, name)
        if not inspect.ismodule(obj):
            groups.setdefault(getattr(obj, "__module__", room.__name__), []).append(name)
    return groups


def _entry(room: ModuleType, name: str) -> list[str]:
    obj = getattr(room, name)
    place = f"sde.{name}" if getattr(sde, name, None) is obj else f"{room.__name__}.{name}"
    if inspect.isclass(obj):
        return [f".. autoclass:: {place}", "   :members:", "   :show-inheritance:", ""]
    return [f".. autofunction:: {place}" if callable(obj) else f".. autodata:: {place}", ""]


def _notebooks(app: Sphinx) -> None:
    """Copy the notebooks' sources to where Sphinx looks for pages."""
    target = HERE / "_generated"
    target.mkdir(exist_ok=True)
    for page in sorted((HERE.parent / "notebooks").glob("*.md")):
        if not (target / page.name).exists() or (target / page.name).read_bytes() != page.read_bytes():
            shutil.copy(page, target)


def setup(app: Sphinx) -> None:
    inline, block = partial(_mathml, block=False), partial(_mathml, block=True)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.add_directive("room", Room)
    app.connect("autodoc-process-docstring", _docstring, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
    app.connect("builder-inited", _notebooks)
