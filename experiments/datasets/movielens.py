"""MovieLens-100K as input tables: a rating is an impression, a rating of 4 or 5 its click.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM Transactions on
Interactive Intelligent Systems 5(4), 2015. Two layouts are read: the original (`u.data`, `u.item`, `u.user`)
and RecBole's atomic files (`ml-100k.inter`, `.item`, `.user`, plain or .gz). Both give the same tables but
for one film without a title. The data set has no queries and no images.
"""

import gzip
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import atomic_folder, atomic_write_json, json_file_has, refuse_to_replace_input
from features.inputs.tables import InputError

#: A rating at least this high is a click, and the film joins the user's history.
LIKED = 4

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

_TIME = pa.timestamp("us", tz="UTC")
_YEAR = re.compile(r" \((\d{4})\)(?: \(V\))?$")


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


@dataclass(frozen=True, order=True)
class Rating:
    """One rating; ordered by time, ties as published."""

    second: int
    line: int
    user: int
    film: int
    stars: float


@dataclass(frozen=True)
class MovieLensSummary:
    """What was imported."""

    layout: str
    users: int
    films: int
    ratings: int
    liked: int


def import_movielens(source: Path, out: Path) -> MovieLensSummary:
    """Write products, impressions and purchases of MovieLens-100K to the folder `out`.

    A user's purchases are the films that she liked, at the moment of the rating; features look strictly
    before an impression, so a rating never sees itself nor those of the same second.

    Raises:
        InputError: no known layout, or a line that cannot be read; names file and line.
        FileExistsError: `out` holds something that is not an import; an older import is replaced.
        ValueError: `out` would replace `source`.
    """
    refuse_to_replace_input(out, source)
    layout, ratings, films, viewers = _read(source)
    ratings.sort()
    liked = sum(rating.stars >= LIKED for rating in ratings)
    summary = MovieLensSummary(layout, len(viewers), len(films), len(ratings), liked)
    with atomic_folder(out, ours=lambda found: json_file_has(found / "source.json", "liked_from")) as folder:
        pq.write_table(_products(films), folder / "products.parquet")
        pq.write_table(_impressions(ratings, viewers), folder / "impressions.parquet")
        pq.write_table(_purchases(ratings), folder / "purchases.parquet")
        description = {"source": "MovieLens-100K", "simulated": False, "liked_from": LIKED}
        atomic_write_json(folder / "source.json", {**description, **asdict(summary)})
    return summary


def _read(source: Path) -> tuple[str, list[Rating], dict[int, Film], dict[int, Viewer]]:
    for folder in (source, source / "ml-100k"):
        if (folder / "u.data").is_file():
            films = dict(_grouplens_films(_file(folder, "u.item")))
            viewers = dict(_viewers(_lines(_file(folder, "u.user"), "|", 5, "latin-1")))
            lines = _lines(_file(folder, "u.data"), "\t", 4, "latin-1")
            return "grouplens", list(_ratings(lines, films, viewers)), films, viewers
        if any((folder / f"ml-100k.inter{end}").is_file() for end in ("", ".gz")):
            films = dict(_recbole_films(_file(folder, "ml-100k.item")))
            viewers = dict(_viewers(_recbole(_file(folder, "ml-100k.user"), 5)))
            lines = _recbole(_file(folder, "ml-100k.inter"), 4)
            return "recbole", list(_ratings(lines, films, viewers)), films, viewers
    raise InputError(
        f"{source} holds neither u.data (the original MovieLens-100K) nor ml-100k.inter[.gz] (RecBole's "
        "files); give the folder into which the archive was unpacked"
    )


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder} lacks {name}; unpack the whole MovieLens-100K archive into it")


@dataclass(frozen=True)
class _Line:
    """One line, split; `whole` and `fail` name the file and the line in their errors."""

    path: Path
    number: int
    fields: list[str]

    def fail(self, problem: str) -> InputError:
        return InputError(f"{self.path} line {self.number}: {problem}; is the download complete?")

    def whole(self, place: int, meaning: str) -> int:
        try:
            value = float(self.fields[place])
            if value == int(value):
                return int(value)
        except (ValueError, OverflowError):
            pass
        raise self.fail(f"the {meaning} must be a whole number, not {self.fields[place]!r}")


def _lines(path: Path, separator: str, at_least: int, encoding: str) -> Iterator[_Line]:
    try:
        with (
            gzip.open(path, "rt", encoding=encoding)
            if path.suffix == ".gz"
            else path.open(encoding=encoding) as file
        ):
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                line = _Line(path, number, text.rstrip("\r\n").split(separator))
                if len(line.fields) < at_least:
                    raise line.fail(f"expected {at_least} fields but found {len(line.fields)}")
                yield line
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read to its end ({error}); download it again") from error


def _recbole(path: Path, at_least: int) -> Iterator[_Line]:
    """Lines after the header, which says `name:type` for each field."""
    lines = _lines(path, "\t", at_least, "utf-8")
    header = next(lines, None)
    if header is None or not all(":" in field for field in header.fields):
        raise InputError(f"{path} line 1: expected RecBole's header (name:type, separated by tabs)")
    yield from lines


def _ratings(lines: Iterator[_Line], films: dict[int, Film], viewers: dict[int, Viewer]) -> Iterator[Rating]:
    for line in lines:
        user, film = line.whole(0, "user id"), line.whole(1, "film id")
        if user not in viewers:
            raise line.fail(f"user {user} is not in the user file")
        if film not in films:
            raise line.fail(f"film {film} is not in the item file")
        stars = line.whole(2, "rating")
        if not 1 <= stars <= 5:
            raise line.fail(f"the rating must be 1 to 5, not {stars}")
        second = line.whole(3, "time in seconds since 1970")
        yield Rating(second, line.number, user, film, stars)


def _viewers(lines: Iterator[_Line]) -> Iterator[tuple[int, Viewer]]:
    for line in lines:
        yield line.whole(0, "user id"), Viewer(line.whole(1, "age"), line.fields[2], line.fields[3])


def _grouplens_films(path: Path) -> Iterator[tuple[int, Film]]:
    """id | title (year) | release date | video date | address | one flag for each of `GENRES`."""
    for line in _lines(path, "|", 5 + len(GENRES), "latin-1"):
        flags = line.fields[5 : 5 + len(GENRES)]
        genres = tuple(genre for genre, flag in zip(GENRES, flags, strict=True) if flag == "1")
        yield line.whole(0, "film id"), _film(line.fields[1], genres)


def _recbole_films(path: Path) -> Iterator[tuple[int, Film]]:
    """id, title, last word in brackets of the original title (mostly the year), genres by spaces."""
    for line in _recbole(path, 4):
        title, bracket = line.fields[1], line.fields[2]
        if bracket.isdecimal() or _YEAR.search(title):
            title = f"{title} ({bracket})"
        yield line.whole(0, "film id"), _film(title, tuple(line.fields[3].split()))


def _film(title: str, genres: tuple[str, ...]) -> Film:
    year = _YEAR.search(title)
    return Film(title.strip(), int(year.group(1)) if year else None, genres or ("unknown",))


def _products(films: dict[int, Film]) -> pa.Table:
    rows = sorted(films.items())
    columns: dict[str, Any] = {
        "product_id": pa.array([number for number, _ in rows], pa.int64()),
        "title": pa.array([f"{film.title} {' '.join(film.genres)}" for _, film in rows], pa.string()),
        "aisle": pa.array([film.genres[0] for _, film in rows], pa.string()),
        "genres": pa.array(["|".join(film.genres) for _, film in rows], pa.string()),
        "release_year": pa.array([film.release_year for _, film in rows], pa.int32()),
    }
    return pa.table(columns)


def _impressions(ratings: list[Rating], viewers: dict[int, Viewer]) -> pa.Table:
    seen = [viewers[rating.user] for rating in ratings]
    clicked = [rating.stars >= LIKED for rating in ratings]
    times = [rating.second * 1_000_000 for rating in ratings]
    click_times = [time if click else None for time, click in zip(times, clicked, strict=True)]
    columns: dict[str, Any] = {
        "impression_id": pa.array(range(len(ratings)), pa.int64()),
        "timestamp": pa.array(times, _TIME),
        "user_id": pa.array([rating.user for rating in ratings], pa.int64()),
        "product_id": pa.array([rating.film for rating in ratings], pa.int64()),
        "clicked": pa.array(clicked, pa.bool_()).cast(pa.int8()),
        "click_timestamp": pa.array(click_times, _TIME),
        "user_age": pa.array([viewer.age for viewer in seen], pa.int32()),
        "user_gender": pa.array([viewer.gender for viewer in seen], pa.string()),
        "user_occupation": pa.array([viewer.occupation for viewer in seen], pa.string()),
    }
    return pa.table(columns)


def _purchases(ratings: list[Rating]) -> pa.Table:
    """`purchase_id` is the impression's id."""
    liked = [(number, rating) for number, rating in enumerate(ratings) if rating.stars >= LIKED]
    columns: dict[str, Any] = {
        "timestamp": pa.array([rating.second * 1_000_000 for _, rating in liked], _TIME),
        "user_id": pa.array([rating.user for _, rating in liked], pa.int64()),
        "product_id": pa.array([rating.film for _, rating in liked], pa.int64()),
        "purchase_id": pa.array([number for number, _ in liked], pa.int64()),
    }
    return pa.table(columns)
