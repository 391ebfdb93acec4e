"""What the HTML pages are made of: sections and where they come from, tables, pictures. No script."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Plot:
    """A plot with its heading, what to look for, and a text for those who cannot see it."""

    heading: str
    caption: str
    source: str
    #: Drawn for less than the width of the page.
    narrow: bool = False
    #: Its numbers are in a table as well.
    tabulated: bool = True


@dataclass(frozen=True)
class Grid:
    """A table: first columns of text, then of numbers. `bold` has (row, column) of what stands out."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    text_columns: int = 1


@dataclass(frozen=True)
class Tile:
    """A product in a gallery: its picture, or None where there is none to show, and lines below it."""

    picture: str | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Products side by side."""

    heading: str
    caption: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Origin:
    """What made a result: the command, the commits of the code (one or more), the time."""

    command: str | None
    commits: tuple[str, ...]
    created: datetime | None

    @property
    def made(self) -> str:
        """Commit and time as words; what was not recorded is called so."""
        word = "commits" if len(self.commits) > 1 else "commit"
        return f"{word} {listed(self.commits) or 'not recorded'}, {time_of(self.created)}"


@dataclass(frozen=True)
class Section:
    """One part of a page: a question, its answer in one sentence, and what the answer rests on."""

    anchor: str
    title: str
    question: str
    answer: str
    #: None where the page itself measured it: its foot says when.
    origin: Origin | None
    sentences: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    galleries: tuple[Gallery, ...] = ()


@dataclass(frozen=True)
class Absent:
    """A part that cannot be shown: why, and the command that makes it, if one could."""

    anchor: str
    title: str
    question: str
    reason: str
    command: str | None


def render(template: str, **content: Any) -> str:
    """A page from a template. Names and texts are escaped; a name that the template lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**content)


def svg_source(svg: str) -> str:
    """Source of an image element: two inline SVGs of one page would share names, two images do not."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def png_source(png: bytes) -> str:
    """Source of an image element that holds the whole picture."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def jpeg_source(jpeg: bytes) -> str:
    """As `png_source` of a photo."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def time_of(created: datetime | None) -> str:
    """As "2026-11-23 02:51 UTC"; as "2026-11-23" where only the day was recorded."""
    if created is None:
        return "time not recorded"
    return f"{created:%Y-%m-%d}" if created.tzinfo is None else f"{created:%Y-%m-%d %H:%M} UTC"


def listed(names: Sequence[str]) -> str:
    """As "a", "a and b", "a, b and c"; nothing for no name."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
