"""MovieLens as input tables: a rating is an impression, a rating of 4 stars or more its click.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM Transactions on
Interactive Intelligent Systems 5(4), 2015. `experiments/datasets/movielens_files.py` says which layouts are
read; those of the 100K give the same tables but for one film without a title. The data sets have no queries
and no images, and the CSV files say nothing of the users.

Shapes: N ratings in time order, L of them liked.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.datasets.movielens_files import Film, Ratings, Viewer, read_movielens
from features.artifacts import atomic_folder, atomic_write_json, json_file_has, refuse_to_replace_input
from features.progress import Progress, silent

#: A rating at least this high is a click, and the film joins the user's history.
LIKED = 4

_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class MovieLensSummary:
    """What was imported; without `known_users` the impressions have no columns of age, gender, occupation."""

    layout: str
    users: int
    known_users: bool
    films: int
    ratings: int
    liked: int


def import_movielens(source: Path, out: Path, *, progress: Progress = silent) -> MovieLensSummary:
    """Write products, impressions and purchases of MovieLens to the folder `out`.

    A user's purchases are the films that she liked, at the moment of the rating; features look strictly
    before an impression, so a rating never sees itself nor those of the same second.

    Raises:
        InputError: no known layout, or a line that cannot be read; names file and line.
        FileExistsError: `out` holds something that is not an import; an older import is replaced.
        ValueError: `out` would replace `source`.
    """
    refuse_to_replace_input(out, source)
    published = read_movielens(source, progress=progress)
    ratings, films, viewers = _in_time_order(published.ratings), published.films, published.viewers
    summary = MovieLensSummary(
        layout=published.layout,
        users=len(np.unique(ratings.user_N)) if viewers is None else len(viewers),
        known_users=viewers is not None,
        films=len(films),
        ratings=len(ratings.user_N),
        liked=int((ratings.stars_N >= LIKED).sum()),
    )
    with atomic_folder(out, ours=lambda found: json_file_has(found / "source.json", "liked_from")) as folder:
        pq.write_table(_products(films), folder / "products.parquet")
        pq.write_table(_impressions(ratings, viewers), folder / "impressions.parquet")
        pq.write_table(_purchases(ratings), folder / "purchases.parquet")
        description = {"source": "MovieLens", "simulated": False, "liked_from": LIKED}
        atomic_write_json(folder / "source.json", {**description, **asdict(summary)})
    return summary


def _in_time_order(ratings: Ratings) -> Ratings:
    """Ratings of one second stay as published."""
    order_N = np.argsort(ratings.second_N, kind="stable")
    return Ratings(
        ratings.user_N[order_N], ratings.film_N[order_N], ratings.stars_N[order_N], ratings.second_N[order_N]
    )


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


def _impressions(ratings: Ratings, viewers: dict[int, Viewer] | None) -> pa.Table:
    liked_N = ratings.stars_N >= LIKED
    time_us_N = ratings.second_N * 1_000_000
    columns: dict[str, Any] = {
        "impression_id": pa.array(np.arange(len(liked_N))),
        "timestamp": pa.array(time_us_N, _TIME),
        "user_id": pa.array(ratings.user_N),
        "product_id": pa.array(ratings.film_N),
        "clicked": pa.array(liked_N.astype(np.int8)),
        "click_timestamp": pa.array(time_us_N, _TIME, mask=~liked_N),
    }
    if viewers is not None:
        columns |= _viewer_columns(ratings.user_N, viewers)
    return pa.table(columns)


def _viewer_columns(user_N: npt.NDArray[np.int64], viewers: dict[int, Viewer]) -> dict[str, pa.Array]:
    users_U, place_N = np.unique(user_N, return_inverse=True)
    seen_U = [viewers[user] for user in users_U.tolist()]
    take = pa.array(place_N)
    return {
        "user_age": pa.array([viewer.age for viewer in seen_U], pa.int32()).take(take),
        "user_gender": pa.array([viewer.gender for viewer in seen_U], pa.string()).take(take),
        "user_occupation": pa.array([viewer.occupation for viewer in seen_U], pa.string()).take(take),
    }


def _purchases(ratings: Ratings) -> pa.Table:
    """`purchase_id` is the impression's id."""
    number_L = np.flatnonzero(ratings.stars_N >= LIKED)
    columns: dict[str, Any] = {
        "timestamp": pa.array(ratings.second_N[number_L] * 1_000_000, _TIME),
        "user_id": pa.array(ratings.user_N[number_L]),
        "product_id": pa.array(ratings.film_N[number_L]),
        "purchase_id": pa.array(number_L),
    }
    return pa.table(columns)
