"""The files of MovieLens as published: the original 100K, 1M and 10M, latest and 25M, and RecBole's.

| Layout | Files | Users known by |
|---|---|---|
| grouplens | `u.data`, `u.item`, `u.user` (100K) | age, gender, occupation |
| dat | `ratings.dat`, `movies.dat`, `users.dat` (1M; 10M has no users), fields parted by `::` | the same |
| csv | `ratings.csv`, `movies.csv` with header (latest, latest-small, 20M, 25M, 32M) | nothing |
| recbole | `ml-*.inter`, `.item`, `.user` with a header of `name:type` | age, gender, occupation |

Files with a header are read by its names. Any file may be packed as .gz.

Shapes: N ratings in the order of their file.
"""

import csv
import gzip
import io
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import numpy as np
import numpy.typing as npt

from features.inputs.tables import InputError
from features.progress import Progress, silent

#: The flags at the end of a `u.item` line, in their order.
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)

_NO_GENRES = "(no genres listed)"
_YEAR = re.compile(r" \((\d{4})\)(?: \(V\))?$")
_MOST_STARS = 5
_ROWS_BETWEEN_REPORTS = 100_000


@dataclass(frozen=True)
class Film:
    """One film; `title` carries the year as published, `release_year` is None where it has none."""

    title: str
    release_year: int | None
    genres: tuple[str, ...]


@dataclass(frozen=True)
class Viewer:
    """What is known of a user."""

    age: int
    gender: str
    occupation: str


@dataclass(frozen=True)
class Ratings:
    """Columns of the ratings; `second_N` counts from 1970."""

    user_N: npt.NDArray[np.int64]
    film_N: npt.NDArray[np.int64]
    stars_N: npt.NDArray[np.float64]
    second_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Published:
    """One data set as read; `viewers` is None where nothing is known of the users."""

    layout: str
    ratings: Ratings
    films: dict[int, Film]
    viewers: dict[int, Viewer] | None


def read_movielens(source: Path, *, progress: Progress = silent) -> Published:
    """Read the data set in the folder `source`, or in its one subfolder `ml-*`.

    Raises:
        InputError: no known layout or several, a file or column is missing, or a line cannot be read; names
            file and line.
    """
    found = _found(source)
    if not found and source.is_dir():
        subfolders = sorted(folder for folder in source.glob("ml-*") if folder.is_dir())
        found = [entry for folder in subfolders for entry in _found(folder)]
    if not found:
        raise InputError(
            f"{source} holds neither u.data (MovieLens-100K) nor ratings.dat (1M), ratings.csv (latest, "
            "25M) or ml-*.inter (RecBole's files), plain or .gz; give the folder into which the archive "
            "was unpacked"
        )
    if len(found) > 1:
        names = " and ".join(str(folder / layout.ratings.name) for folder, layout in found)
        raise InputError(f"{source} holds more than one data set: {names}; give the folder of one")
    folder, layout = found[0]
    films = dict(layout.films_of(_Lines.of(folder, layout.films)))
    viewers = None
    if layout.viewers and (layout.viewers_needed or _path(folder, layout.viewers.name)):
        viewers = dict(_viewers(_Lines.of(folder, layout.viewers)))
    lines = _Lines.of(folder, layout.ratings)
    ratings = _ratings(lines, films, viewers, step=layout.stars_step, progress=progress)
    return Published(layout.name, ratings, films, viewers)


#: A column: its place, or the names that it may have in a header.
_Column = int | tuple[str, ...]


@dataclass(frozen=True)
class _FileSpec:
    """How one file is laid out; `fields` a line is None where the header says it."""

    name: str
    separator: str
    encoding: str
    columns: tuple[_Column, ...]
    fields: int | None = None
    typed_header: bool = False


@dataclass(frozen=True)
class _Layout:
    """One way in which MovieLens is published. Viewers: id, age, gender, occupation."""

    name: str
    ratings: _FileSpec
    films: _FileSpec
    films_of: "Callable[[_Lines], Iterator[tuple[int, Film]]]"
    viewers: _FileSpec | None = None
    viewers_needed: bool = False
    #: Ratings are whole multiples of this many stars, from one of it up to five stars.
    stars_step: float = 0.5


class _Lines:
    """One file, line by line; errors name the file and the line."""

    def __init__(self, path: Path, spec: _FileSpec) -> None:
        self.path = path
        self._spec = spec
        self.size = path.stat().st_size
        #: Bytes read so far.
        self.position = 0

    @classmethod
    def of(cls, folder: Path, spec: _FileSpec) -> "_Lines":
        path = _path(folder, spec.name)
        if path is None:
            raise InputError(f"{folder} lacks {spec.name}; unpack the whole MovieLens archive into it")
        return cls(path, spec)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and the spec's columns in their order; blank lines are left out."""
        try:
            with self._open() as (text, raw):
                lines = self._split(text)
                expected, places = self._spec.fields, self._spec.columns
                if expected is None:
                    header = next(lines, (1, []))[1]
                    expected, places = len(header), self._places(header)
                for number, fields in lines:
                    if len(fields) != expected:
                        raise self.fail(number, f"expected {expected} fields but found {len(fields)}")
                    yield number, [fields[cast(int, place)] for place in places]
                    if number % _ROWS_BETWEEN_REPORTS == 0:
                        self.position = raw.tell()
        except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{self.path} cannot be read to its end ({error}); download it again") from error

    def fail(self, number: int, problem: str) -> InputError:
        return InputError(f"{self.path} line {number}: {problem}; is the download complete?")

    def whole(self, number: int, text: str, meaning: str) -> int:
        try:
            return int(text)
        except ValueError:  # RecBole writes times as float
            return int(self.multiple(number, text, meaning, of=1))

    def multiple(self, number: int, text: str, meaning: str, *, of: float) -> float:
        try:
            value = float(text)
            if (value / of).is_integer():
                return value
        except ValueError:
            pass
        kind = "a whole number" if of == 1 else f"a multiple of {of:g}"
        raise self.fail(number, f"the {meaning} must be {kind}, not {text!r}")

    @contextmanager
    def _open(self) -> Iterator[tuple[TextIO, BinaryIO]]:
        packed = self.path.suffix == ".gz"
        # csv wants to see the ends of lines itself: a quoted field may hold one
        newline = "" if self._spec.separator == "," else None
        with (
            self.path.open("rb") as raw,
            gzip.open(raw) if packed else nullcontext(raw) as stream,
            io.TextIOWrapper(cast(BinaryIO, stream), encoding=self._spec.encoding, newline=newline) as text,
        ):
            yield text, raw

    def _split(self, text: TextIO) -> Iterator[tuple[int, list[str]]]:
        if self._spec.separator == ",":
            reader = csv.reader(text, strict=True)
            yield from ((reader.line_num, fields) for fields in reader if fields)
            return
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield number, line.rstrip("\n").split(self._spec.separator)

    def _places(self, header: list[str]) -> tuple[int, ...]:
        names = header
        if self._spec.typed_header:
            if not header or not all(":" in field for field in header):
                raise InputError(
                    f"{self.path} line 1: expected RecBole's header (name:type, separated by tabs)"
                )
            names = [field.partition(":")[0] for field in header]
        places = []
        for wanted in self._spec.columns:
            found = [place for place, name in enumerate(names) if name in cast("tuple[str, ...]", wanted)]
            if len(found) != 1:
                what = " or ".join(map(repr, cast("tuple[str, ...]", wanted)))
                raise InputError(
                    f"{self.path} line 1: {len(found) or 'no'} columns are named {what}, one is needed; "
                    f"the header has {', '.join(names) or 'nothing'}"
                )
            places.append(found[0])
        return tuple(places)


def _path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _found(folder: Path) -> list[tuple[Path, _Layout]]:
    """The data sets of one folder. Stems of RecBole's files differ, so each is a layout of its own."""
    stems = sorted({path.name.partition(".inter")[0] for path in folder.glob("ml-*.inter*")})
    layouts = (*_GROUPLENS, *(_recbole(stem) for stem in stems))
    return [(folder, layout) for layout in layouts if _path(folder, layout.ratings.name)]


def _ratings(
    lines: _Lines,
    films: dict[int, Film],
    viewers: dict[int, Viewer] | None,
    *,
    step: float,
    progress: Progress,
) -> Ratings:
    """Columns as arrays: 25 million ratings as objects would take gigabytes."""
    users, rated, stars_of, seconds = array("q"), array("q"), array("d"), array("q")
    for number, (user_text, film_text, stars_text, time_text) in lines.rows():
        user = lines.whole(number, user_text, "user id")
        film = lines.whole(number, film_text, "film id")
        if viewers is not None and user not in viewers:
            raise lines.fail(number, f"user {user} is not in the user file")
        if film not in films:
            raise lines.fail(number, f"film {film} is not in the item file")
        stars = lines.multiple(number, stars_text, "rating", of=step)
        if not step <= stars <= _MOST_STARS:
            raise lines.fail(number, f"the rating must be {step:g} to {_MOST_STARS}, not {stars:g}")
        users.append(user)
        rated.append(film)
        stars_of.append(stars)
        seconds.append(lines.whole(number, time_text, "time in seconds since 1970"))
        if number % _ROWS_BETWEEN_REPORTS == 0:
            progress("reading the ratings", lines.position, lines.size)
    if not users:
        raise InputError(f"{lines.path} holds no ratings; download it again")
    return Ratings(np.array(users), np.array(rated), np.array(stars_of), np.array(seconds))


def _viewers(lines: _Lines) -> Iterator[tuple[int, Viewer]]:
    for number, (user, age, gender, occupation) in lines.rows():
        yield (
            lines.whole(number, user, "user id"),
            Viewer(lines.whole(number, age, "age"), gender, occupation),
        )


def _flagged_films(lines: _Lines) -> Iterator[tuple[int, Film]]:
    """id, title (year), one flag for each of `GENRES`."""
    for number, (film, title, *flags) in lines.rows():
        genres = tuple(genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1")
        yield lines.whole(number, film, "film id"), _film(title, genres)


def _listed_films(lines: _Lines) -> Iterator[tuple[int, Film]]:
    """id, title (year), genres parted by bars."""
    for number, (film, title, genres) in lines.rows():
        listed = () if genres == _NO_GENRES else tuple(genre for genre in genres.split("|") if genre)
        yield lines.whole(number, film, "film id"), _film(title, listed)


def _recbole_films(lines: _Lines) -> Iterator[tuple[int, Film]]:
    """id, title, last word in brackets of the original title (mostly the year), genres by spaces."""
    for number, (film, title, bracket, genres) in lines.rows():
        if bracket.isdecimal() or _YEAR.search(title):
            title = f"{title} ({bracket})"
        yield lines.whole(number, film, "film id"), _film(title, tuple(genres.split()))


def _film(title: str, genres: tuple[str, ...]) -> Film:
    title = title.strip()
    year = _YEAR.search(title)
    return Film(title, int(year.group(1)) if year else None, genres or ("unknown",))


def _recbole(stem: str) -> _Layout:
    def spec(end: str, *columns: tuple[str, ...]) -> _FileSpec:
        return _FileSpec(f"{stem}.{end}", "\t", "utf-8-sig", columns, typed_header=True)

    titles, genres = ("movie_title", "title"), ("class", "genre", "genres")
    return _Layout(
        "recbole",
        spec("inter", ("user_id",), ("item_id",), ("rating",), ("timestamp",)),
        spec("item", ("item_id",), titles, ("release_year",), genres),
        _recbole_films,
        spec("user", ("user_id",), ("age",), ("gender",), ("occupation",)),
    )


#: `u.user` is id | age | gender | occupation | zip; `users.dat` is id :: gender :: age :: occupation :: zip.
_GROUPLENS = (
    _Layout(
        "grouplens",
        _FileSpec("u.data", "\t", "latin-1", (0, 1, 2, 3), fields=4),
        _FileSpec("u.item", "|", "latin-1", (0, 1, *range(5, 5 + len(GENRES))), fields=5 + len(GENRES)),
        _flagged_films,
        _FileSpec("u.user", "|", "latin-1", (0, 1, 2, 3), fields=5),
        viewers_needed=True,
        stars_step=1,
    ),
    _Layout(
        "dat",
        _FileSpec("ratings.dat", "::", "latin-1", (0, 1, 2, 3), fields=4),
        _FileSpec("movies.dat", "::", "latin-1", (0, 1, 2), fields=3),
        _listed_films,
        _FileSpec("users.dat", "::", "latin-1", (0, 2, 1, 3), fields=5),
    ),
    _Layout(
        "csv",
        _FileSpec("ratings.csv", ",", "utf-8-sig", (("userId",), ("movieId",), ("rating",), ("timestamp",))),
        _FileSpec("movies.csv", ",", "utf-8-sig", (("movieId",), ("title",), ("genres",))),
        _listed_films,
    ),
)
