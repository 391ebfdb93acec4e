"""MovieLens in its published layouts becomes the same tables; broken files are named with their line."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import experiments
from experiments.cli import app
from experiments.config import load_config
from experiments.datasets.movielens import import_movielens
from experiments.datasets.movielens_files import GENRES
from features.inputs.tables import InputError, InputTables
from features.inputs.validation import validate
from features.schema import FeatureConfig

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


def recbole(folder: Path, *, packed: bool = False, stem: str = "ml-100k", reverse: bool = False) -> Path:
    """RecBole's files; with `reverse` the columns stand in the opposite order, named by their headers."""
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
        lines = (row[::-1] if reverse else row for row in rows)
        text = "".join("\t".join(map(str, row)) + "\n" for row in lines).encode()
        if packed:
            (folder / f"{stem}.{name}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / f"{stem}.{name}").write_bytes(text)
    return folder


def dat(folder: Path, *, users: bool = True) -> Path:
    """The files of the 1M; without `users`, of the 10M."""
    folder.mkdir()
    contents = {
        "ratings.dat": [(u, f, stars, START + second) for u, f, stars, second in RATINGS],
        "movies.dat": [(number, f"{title} ({year})", "|".join(g)) for number, title, year, g in FILMS],
        "users.dat": [(user, gender, age, job, zipped) for user, age, gender, job, zipped in VIEWERS],
    }
    for name, rows in contents.items():
        if users or name != "users.dat":
            text = "".join("::".join(map(str, row)) + "\n" for row in rows)
            (folder / name).write_text(text, encoding="latin-1")
    return folder


def comma_separated(folder: Path) -> Path:
    """The files of latest-small and of the 25M: quoted titles, a header, columns in any order."""
    folder.mkdir()
    with (folder / "ratings.csv").open("w", newline="") as file:
        rows = [(START + second, stars, u, f) for u, f, stars, second in RATINGS]
        csv.writer(file).writerows([("timestamp", "rating", "userId", "movieId"), *rows])
    with (folder / "movies.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(number, f"{title} ({year})", "|".join(genres)) for number, title, year, genres in FILMS]
        csv.writer(file).writerows([("movieId", "title", "genres"), *rows])
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


def test_recbole_files_are_read_by_the_names_of_their_headers(imported, tmp_path):
    import_movielens(recbole(tmp_path / "recbole", reverse=True), tmp_path / "other")
    for table in ("products", "impressions", "purchases"):
        assert rows_of(tmp_path / "other", table) == rows_of(imported, table)


def test_the_files_of_the_1m_give_the_same_tables(imported, tmp_path):
    summary = import_movielens(dat(tmp_path / "ml-1m"), tmp_path / "other")
    assert (summary.layout, summary.known_users, summary.users) == ("dat", True, 2)
    for table in ("products", "impressions", "purchases"):
        assert rows_of(tmp_path / "other", table) == rows_of(imported, table)


@pytest.mark.parametrize("layout", ["csv", "dat"])
def test_files_that_say_nothing_of_users_give_the_same_tables_without_user_columns(
    imported, tmp_path, layout
):
    source = comma_separated(tmp_path / "own") if layout == "csv" else dat(tmp_path / "own", users=False)
    summary = import_movielens(source, tmp_path / "other")
    assert (summary.layout, summary.known_users, summary.users) == (layout, False, 2)
    assert rows_of(tmp_path / "other", "products") == rows_of(imported, "products")
    assert rows_of(tmp_path / "other", "purchases") == rows_of(imported, "purchases")
    known = ("user_age", "user_gender", "user_occupation")
    expected = [
        {name: value for name, value in row.items() if name not in known}
        for row in rows_of(imported, "impressions")
    ]
    assert rows_of(tmp_path / "other", "impressions") == expected


def test_half_stars_titles_with_commas_and_films_without_genres(tmp_path):
    folder = comma_separated(tmp_path / "ml")
    with (folder / "movies.csv").open("a", encoding="utf-8") as file:
        file.write('4,"Cité, La ""rouge"" (2004) ",(no genres listed)\n5,Untitled,Drama\n')
    with (folder / "ratings.csv").open("a") as file:
        file.write(f"{START},4.5,7,4\n{START},3.5,7,5\n")
    import_movielens(folder, tmp_path / "tables")
    rows = {row["product_id"]: row for row in rows_of(tmp_path / "tables", "products")}
    assert (rows[4]["title"], rows[4]["release_year"]) == ('Cité, La "rouge" (2004) unknown', 2004)
    assert (rows[5]["title"], rows[5]["release_year"]) == ("Untitled Drama", None)
    shown = {row["product_id"]: row for row in rows_of(tmp_path / "tables", "impressions")}
    assert (shown[4]["clicked"], shown[5]["clicked"]) == (1, 0)


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("ratings.csv", "9,4.2,1,1\n", r"ratings\.csv line 7: the rating must be a multiple of 0\.5"),
        ("ratings.csv", "9,0,1,1\n", r"ratings\.csv line 7: the rating must be 0\.5 to 5, not 0"),
        ("ratings.csv", "9,4\n", r"ratings\.csv line 7: expected 4 fields but found 2"),
        ("movies.csv", "4,Brazil, the (1985),Drama\n", r"movies\.csv line 5: expected 3 fields but found 4"),
        ("movies.csv", '4,"Brazil', r"movies\.csv cannot be read to its end \(unexpected end of data"),
    ],
)
def test_a_broken_line_of_the_csv_files_is_named(tmp_path, name, text, advice):
    folder = comma_separated(tmp_path / "ml")
    with (folder / name).open("a") as file:
        file.write(text)
    with pytest.raises(InputError, match=advice):
        import_movielens(folder, tmp_path / "tables")


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        (
            "userId,movieId,stars,timestamp",
            "no columns are named 'rating', one is needed; the header has",
        ),
        ("userId,movieId,rating,timestamp,rating", "2 columns are named 'rating'"),
        ("", "no columns are named 'userId', one is needed; the header has nothing"),
    ],
)
def test_a_header_that_lacks_a_column_or_has_it_twice_is_named(tmp_path, header, advice):
    folder = comma_separated(tmp_path / "ml")
    (folder / "ratings.csv").write_text(header + "\n1,1,4,9\n" if header else "")
    with pytest.raises(InputError, match=rf"ratings\.csv line 1: {advice}"):
        import_movielens(folder, tmp_path / "tables")


def test_files_without_ratings_are_named(tmp_path):
    folder = comma_separated(tmp_path / "ml")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(InputError, match=r"ratings\.csv holds no ratings"):
        import_movielens(folder, tmp_path / "tables")


def test_the_archive_may_lie_in_its_own_subfolder(tmp_path):
    (tmp_path / "unpacked").mkdir()
    grouplens(tmp_path / "unpacked" / "ml-100k")
    assert import_movielens(tmp_path / "unpacked", tmp_path / "tables").layout == "grouplens"
    (tmp_path / "other").mkdir()
    comma_separated(tmp_path / "other" / "ml-latest-small")
    assert import_movielens(tmp_path / "other", tmp_path / "tables").layout == "csv"


def test_several_data_sets_in_one_folder_are_refused(tmp_path):
    (tmp_path / "unpacked").mkdir()
    grouplens(tmp_path / "unpacked" / "ml-100k")
    recbole(tmp_path / "unpacked" / "ml-1m", stem="ml-1m", packed=True)
    with pytest.raises(InputError, match=r"more than one data set: .*u\.data and .*ml-1m\.inter; give"):
        import_movielens(tmp_path / "unpacked", tmp_path / "tables")


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


def test_the_features_without_users_name_columns_that_the_csv_files_have(tmp_path):
    import_movielens(comma_separated(tmp_path / "ml"), tmp_path / "tables")
    config = load_config(CONFIGS / "movielens_features_no_users.toml", FeatureConfig)
    tables = InputTables.open(tmp_path / "tables")
    for feature in config.features:
        if feature.source != "timestamp":
            tables.require_columns(feature.source, (feature.column,), wanted_by=feature.name)
