"""A small page of figures and tables that needs nothing but the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A picture beside the page, with its caption."""

    name: str
    caption: str

    def html(self, folder: Path) -> str:
        """As an element of the page, at the size that it was drawn for."""
        from PIL import Image

        with Image.open(folder / self.name) as image:
            (width, height), dpi = image.size, image.info.get("dpi", (100, 100))[0]
        name, caption = escape(self.name, quote=True), escape(self.caption)
        size = f'width="{round(100 * width / dpi)}" height="{round(100 * height / dpi)}"'
        image = f'<a href="{name}"><img src="{name}" {size} alt="{caption}"></a>'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


@dataclass
class Table:
    """A table of numbers: a row's first cell is its name.

    Example:
        >>> table = Table("Distances", ["", "W2"], "Less is better.")
        >>> table.add("floor", 0.0213)
        >>> print(table)
        Distances
                   W2
        floor  0.0213
        Less is better.
    """

    title: str
    columns: list[str]
    note: str = ""
    rows: list[list[str]] = field(default_factory=list)

    def add(self, name: str, *values: object) -> None:
        """One more row; numbers in three digits, anything else as it prints."""
        self.rows.append([name, *(f"{v:#.3g}" if isinstance(v, float) else str(v) for v in values)])

    def __str__(self) -> str:
        widths = [max(len(row[k]) for row in [self.columns, *self.rows]) for k in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in [self.columns, *self.rows]
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines), *([self.note] if self.note else [])])

    def html(self, folder: Path) -> str:
        """As an element of the page."""
        head = "".join(f"<th>{escape(c)}</th>" for c in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows)
        return (
            f"<div class=table><table><caption>{escape(self.title)}</caption>\n<tr>{head}</tr>\n{body}</table></div>"
            f"<p class=note>{escape(self.note)}</p>"
        )


STYLE = """
:root { color-scheme: light; --ink: #1d1d1f; --soft: #5c5c61; --line: #d8d8dc; --accent: #0072b2 }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 }
h2 { font-size: 1.3rem; margin: 3rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line) }
figure { margin: 2rem 0 }
img { max-width: 100%; height: auto; display: block; margin: 0 auto }
figcaption, .note { color: var(--soft); font-size: .92rem; max-width: 46rem; margin: .6rem auto 0 }
.table { overflow-x: auto }
table { border-collapse: collapse; margin: 2rem auto 0; font-size: .95rem; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
code { background: #f3f3f5; padding: .1rem .3rem; border-radius: 3px }
"""


LEAD = """
<p>Written by <code>sde demo</code>, which computed all of it just now. A forward SDE turns data into noise; a network
learns the score of what lies between; a solver walks back, with fresh noise on the way (the reverse SDE) or without
(the probability-flow ODE).</p>
"""


def write(path: Path, parts: Sequence[Figure | Table | str], first: str = "") -> Path:
    """The page: strings are headings, and the figure named `first` stands above all."""
    top = [p for p in parts if isinstance(p, Figure) and p.name == first]
    blocks = [
        f"<h2>{escape(p)}</h2>" if isinstance(p, str) else p.html(path.parent)
        for p in [*top, *(p for p in parts if p not in top)]
    ]
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>From noise to data</title>\n<style>{STYLE}</style>"
    )
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n<h1>From noise to data</h1>{LEAD}" + "\n".join(blocks) + "\n</body>\n</html>\n",
        encoding="utf-8",
    )
    return path
