"""MovieLens in both published layouts becomes the same tables; broken files are named with their line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import experiments
from experiments.cli import app
from experiments.config import load_config
from experiments.datasets.movielens import GENRES, import_movielens
from features.inputs.tables import InputError, InputTables
from features.inputs.validation import validate
from features.schema import FeatureConfig
from ranking.metrics import roc_auc
from ranking.popularity import popularity_floor

START = 874_724_710  # 1997-09-20 03:05:10 UTC

#: user, film, stars, seconds after START; out of order, and two ratings of user 2 share a second.
RATINGS = [(2, 1, 5, 60), (1, 2, 3, 0), (2, 2, 2, 60), (1, 3, 4, 30), (1, 1, 1, 90)]
FILMS = [
    (1, "Toy Story", "1995", ("Animation", "Children's", "Comedy")),
    (2, "Misérables, Les", "1995", ("Drama", "Musical")),
    (3, "Alien", "1979", ("Sci-Fi",)),
]
VIEWERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "94043")]
CONFIGS = Path(experiments.__file__).parent / "configs"


def grouplens(folder: Path) -> Path:
    folder.mkdir()
    ratings = "".join(f"{u}\t{f}\t{stars}\t{START + second}\n" for u, f, stars, second in RATINGS)
    (folder / "u.data").write_text(ratings)
    lines = []
    for number, title, year, genres in FILMS:
        flags = "|".join("1" if genre in genres else "0" for genre in GENRES)
        lines.append(f"{number}|{title} ({year})|01-Jan-{year}||http://example.org|{flags}\n")
    (folder / "u.item").write_text("".join(lines), encoding="latin-1")
    (folder / "u.user").write_text("".join("|".join(map(str, viewer)) + "\n" for viewer in VIEWERS))
    return folder


def recbole(folder: Path, *, packed: bool) -> Path:
    folder.mkdir()
    contents = {
        "inter": [
            ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
            *((u, f, stars, START + second) for u, f, stars, second in RATINGS),
        ],
        "item": [
            ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
            *((number, title, year, " ".join(genres)) for number, title, year, genres in FILMS),
        ],
        "user": [
            ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"),
            *VIEWERS,
        ],
    }
    for name, rows in contents.items():
        text = "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()
        if packed:
            (folder / f"ml-100k.{name}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / f"ml-100k.{name}").write_bytes(text)
    return folder


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    import_movielens(grouplens(tmp_path / "ml"), tmp_path / "tables")
    return tmp_path / "tables"


def rows_of(folder: Path, table: str) -> list[dict]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def test_ratings_become_impressions_numbered_in_time_order(imported):
    rows = rows_of(imported, "impressions")
    assert [row["impression_id"] for row in rows] == [0, 1, 2, 3, 4]
    assert [(row["user_id"], row["product_id"]) for row in rows] == [(1, 2), (1, 3), (2, 1), (2, 2), (1, 1)]
    assert [row["clicked"] for row in rows] == [0, 1, 1, 0, 0]
    assert rows[0]["timestamp"].isoformat() == "1997-09-20T03:05:10+00:00"
    assert (rows[2]["user_age"], rows[2]["user_gender"], rows[2]["user_occupation"]) == (53, "F", "other")
    assert "rating" not in rows[0]  # it is the label
    assert [row["click_timestamp"] == row["timestamp"] for row in rows] == [False, True, True, False, False]


def test_films_rated_four_or_five_become_purchases_at_that_moment(imported):
    impressions = {row["impression_id"]: row for row in rows_of(imported, "impressions")}
    purchases = rows_of(imported, "purchases")
    assert [row["purchase_id"] for row in purchases] == [1, 2]
    for row in purchases:
        rating = impressions[row["purchase_id"]]
        assert all(row[key] == rating[key] for key in ("timestamp", "user_id", "product_id"))


def test_titles_carry_year_and_genres(imported):
    assert rows_of(imported, "products") == [
        {
            "product_id": 1,
            "title": "Toy Story (1995) Animation Children's Comedy",
            "aisle": "Animation",
            "genres": "Animation|Children's|Comedy",
            "release_year": 1995,
        },
        {
            "product_id": 2,
            "title": "Misérables, Les (1995) Drama Musical",
            "aisle": "Drama",
            "genres": "Drama|Musical",
            "release_year": 1995,
        },
        {
            "product_id": 3,
            "title": "Alien (1979) Sci-Fi",
            "aisle": "Sci-Fi",
            "genres": "Sci-Fi",
            "release_year": 1979,
        },
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_both_layouts_give_the_same_tables(imported, tmp_path, packed):
    summary = import_movielens(recbole(tmp_path / "recbole", packed=packed), tmp_path / "other")
    assert (summary.layout, summary.ratings, summary.liked) == ("recbole", 5, 2)
    for table in ("products", "impressions", "purchases"):
        assert rows_of(tmp_path / "other", table) == rows_of(imported, table)


def test_the_archive_may_lie_in_its_own_subfolder(tmp_path):
    (tmp_path / "unpacked").mkdir()
    grouplens(tmp_path / "unpacked" / "ml-100k")
    assert import_movielens(tmp_path / "unpacked", tmp_path / "tables").layout == "grouplens"


def test_the_imported_tables_break_no_rule_and_say_what_they_lack(imported):
    report = validate(imported, max_bad_share=0.0, threads=1)
    assert report.passed
    assert not any(table.broken for table in report.tables.values())
    tables = InputTables.open(imported)
    assert tables.has_purchases
    assert not tables.has_queries
    assert json.loads((imported / "source.json").read_text())["simulated"] is False


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("u.data", "1\t2\t3\n", r"u\.data line 6: expected 4 fields but found 3"),
        ("u.data", "1\t2\tgood\t9\n", r"u\.data line 6: the rating must be a whole number, not 'good'"),
        ("u.data", "1\t2\t6\t9\n", r"u\.data line 6: the rating must be 1 to 5, not 6"),
        ("u.data", "7\t2\t3\t9\n", r"u\.data line 6: user 7 is not in the user file"),
        ("u.data", "1\t9\t3\t9\n", r"u\.data line 6: film 9 is not in the item file"),
        ("u.data", "1\t2\t3\tnan\n", r"u\.data line 6: the time .* not 'nan'"),
        ("u.item", "4|Brazil (1985)|\n", r"u\.item line 4: expected 24 fields but found 3"),
        ("u.user", "3|old|M|other|1\n", r"u\.user line 3: the age must be a whole number, not 'old'"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_written(tmp_path, name, text, advice):
    folder = grouplens(tmp_path / "ml")
    with (folder / name).open("a") as file:
        file.write(text)
    with pytest.raises(InputError, match=advice):
        import_movielens(folder, tmp_path / "tables")
    assert [path.name for path in tmp_path.iterdir()] == ["ml"]


def test_a_cut_archive_is_named(tmp_path):
    folder = recbole(tmp_path / "ml", packed=True)
    path = folder / "ml-100k.inter.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"ml-100k\.inter\.gz cannot be read to its end"):
        import_movielens(folder, tmp_path / "tables")


def test_a_missing_file_or_layout_is_named(tmp_path):
    folder = grouplens(tmp_path / "ml")
    (folder / "u.user").unlink()
    with pytest.raises(InputError, match=r"lacks u\.user"):
        import_movielens(folder, tmp_path / "tables")
    with pytest.raises(InputError, match=r"holds neither u\.data"):
        import_movielens(tmp_path, tmp_path / "tables")


def test_the_command_imports_and_prints_the_counts(tmp_path):
    source = grouplens(tmp_path / "ml")
    result = CliRunner().invoke(app, ["import", "movielens", str(source), str(tmp_path / "tables")])
    assert result.exit_code == 0, result.output
    assert "2 (40.0%)" in result.output
    assert (tmp_path / "tables" / "impressions.parquet").exists()


@pytest.mark.parametrize("name", ["global", "per_user"])
def test_the_shipped_feature_configs_name_columns_that_the_import_writes(imported, name):
    config = load_config(CONFIGS / f"movielens_features_{name}.toml", FeatureConfig)
    assert config.split.method == name
    assert config.history is not None
    assert config.history.window_days == 84
    tables = InputTables.open(imported)
    for feature in (*config.dense, *config.sparse):
        if feature.source != "timestamp":
            assert feature.column in tables.columns(feature.source)


def indexed(rows: list[tuple[int, int, int]]) -> pa.Table:
    """(user, product, clicked) rows."""
    return pa.Table.from_pylist(
        [{"user_index": u, "product_index": p, "clicked": c} for u, p, c in rows],
        schema=pa.schema([("user_index", pa.int32()), ("product_index", pa.int32()), ("clicked", pa.int8())]),
    )


def test_the_floor_scores_product_mean_plus_user_mean():
    past = indexed([(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 1)])
    # means: all 3/4; products 1, 1/2; users 1/2, 1. Scores: 1/2 + 1, 1 + 1/2 (a tie), unseen 3/4 + 3/4.
    floor = popularity_floor(past, indexed([(0, 0, 1), (1, 1, 0), (5, 7, 1)]))
    assert floor.auc == 0.5
    assert (floor.new_user_share, floor.new_product_share) == (1 / 3, 1 / 3)
    assert (floor.past_rows, floor.test_rows) == (4, 3)
    assert popularity_floor(past, indexed([(1, 0, 1), (0, 1, 0)])).auc == 1.0


def test_the_floor_equals_its_slow_version():
    random = np.random.default_rng(0)
    rows = [tuple(row) for row in random.integers(0, [6, 8, 2], (300, 3)).tolist()]
    past, test = rows[:200], rows[200:]
    overall = sum(clicked for *_, clicked in past) / len(past)

    def mean(place: int, key: int) -> float:
        own = [row[2] for row in past if row[place] == key]
        return sum(own) / len(own) if own else overall

    scores = [mean(0, user) + mean(1, product) for user, product, _ in test]
    labels = [clicked for *_, clicked in test]
    probabilities = np.clip(np.array(scores) - overall, 0.01, 0.99)
    losses = -np.where(labels, np.log(probabilities), np.log(1 - probabilities))
    ctr = np.mean(labels)
    entropy = -(ctr * np.log(ctr) + (1 - ctr) * np.log(1 - ctr))
    floor = popularity_floor(indexed(past), indexed(test))
    assert floor.auc == pytest.approx(roc_auc(labels, scores), abs=1e-12)
    assert floor.norm_logloss == pytest.approx(losses.mean() / entropy, abs=1e-12)


def test_the_floor_needs_a_past():
    with pytest.raises(ValueError, match="needs past rows"):
        popularity_floor(indexed([]), indexed([(0, 0, 1)]))


def test_an_import_replaces_an_import_but_no_other_folder_and_not_its_source(tmp_path: Path) -> None:
    source = grouplens(tmp_path / "ml")
    for _ in range(2):
        import_movielens(source, tmp_path / "tables")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"another kind \(thesis\.txt\)"):
        import_movielens(source, tmp_path / "other")
    with pytest.raises(ValueError, match="would replace the input"):
        import_movielens(source, source)
    assert (source / "u.data").exists()
    assert (tmp_path / "other" / "thesis.txt").exists()
