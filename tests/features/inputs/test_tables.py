"""Opening the input tables: what is accepted, and the one sentence that each mistake gives."""

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.inputs.tables import InputError, InputTables, escape_glob, find_table, open_table
from tests.features.inputs.small_tables import NOON, SCHEMAS, UTC_US, good_rows, rewrite, write_tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tables(tmp_path / "marketplace", good_rows())


def the_error(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        InputTables.open(folder)
    return str(caught.value)


def test_good_tables_open_with_their_columns_and_row_counts(folder):
    tables = InputTables.open(folder)
    assert tables.columns("products") == ("product_id", "title", "aisle", "price")
    assert tables.rows("impressions") == 10
    assert tables.has_queries
    assert tables.has_purchases
    assert tables.absences == ("no images in products: image embeddings cannot be made",)
    assert tables.path_glob("purchases") == str(folder / "purchases.parquet")


def test_a_folder_of_files_is_one_table(folder):
    whole = pq.read_table(folder / "impressions.parquet")
    (folder / "impressions.parquet").unlink()
    (folder / "impressions").mkdir()
    pq.write_table(whole.slice(0, 4), folder / "impressions" / "a.parquet")
    pq.write_table(whole.slice(4), folder / "impressions" / "b.parquet")
    (folder / "impressions" / ".c.parquet.writing").write_bytes(b"half")
    (folder / "impressions" / "_SUCCESS").write_bytes(b"")
    tables = InputTables.open(folder)
    assert tables.rows("impressions") == 10
    assert [file.name for file in tables.files("impressions")] == ["a.parquet", "b.parquet"]
    assert tables.path_glob("impressions") == str(folder / "impressions" / "*.parquet")
    ids = duckdb.sql(f"SELECT impression_id FROM {tables.scan_sql('impressions')}").fetchall()
    assert ids == [(i,) for i in range(10)]


def test_a_path_full_of_wildcards_and_quotes_reads_only_itself(tmp_path):
    folder = write_tables(tmp_path / "it's [a] *?", good_rows())
    tables = InputTables.open(folder)
    assert duckdb.sql(f"SELECT count(*) FROM {tables.scan_sql('products')}").fetchall() == [(4,)]
    assert escape_glob("a*b[1]") == "a[*]b[[]1]"


def test_a_recommendation_log_opens_without_queries_and_says_so(folder):
    rewrite(folder, "impressions", "query", None)
    (folder / "relevance.parquet").unlink()
    (folder / "purchases.parquet").unlink()
    tables = InputTables.open(folder)
    assert not tables.has_queries
    assert not tables.has_purchases
    said = " ".join(tables.absences)
    assert all(word in said for word in ("relevance", "purchases", "queries", "images"))


@pytest.mark.parametrize("nulls", [pa.nulls(10), pa.nulls(10, pa.string())], ids=["null", "string"])
def test_queries_that_are_all_null_are_no_queries(folder, nulls):
    rewrite(folder, "impressions", "query", nulls)
    assert not InputTables.open(folder).has_queries


def test_one_query_among_nulls_is_a_data_set_with_queries(folder):
    rewrite(folder, "impressions", "query", pa.array([None] * 9 + ["milk"]))
    assert InputTables.open(folder).has_queries


def test_a_missing_catalogue_is_named(folder):
    (folder / "products.parquet").unlink()
    assert "neither products.parquet nor a folder products/" in the_error(folder)


def test_a_catalogue_with_grades_alone_opens_and_says_that_no_ranker_can_be_trained(folder):
    (folder / "impressions.parquet").unlink()
    (folder / "purchases.parquet").unlink()
    tables = InputTables.open(folder)
    assert any("no impressions table" in said and "ranker" in said for said in tables.absences)
    assert not any("queries in impressions" in said for said in tables.absences)
    with pytest.raises(InputError, match="holds no impressions table; add"):
        tables.rows("impressions")


def test_a_misspelt_table_is_pointed_out(folder):
    (folder / "products.parquet").rename(folder / "product.parquet")
    assert "did you mean 'product.parquet'?" in the_error(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    assert "is not a folder" in the_error(tmp_path / "nowhere")


def test_a_table_that_is_there_twice_is_refused(folder):
    (folder / "products").mkdir()
    assert "keep the one" in the_error(folder)


def test_a_folder_table_without_files_is_refused(folder):
    (folder / "purchases.parquet").unlink()
    (folder / "purchases" / "day=1").mkdir(parents=True)
    assert "holds no *.parquet files" in the_error(folder)


def test_a_missing_column_is_named_with_the_closest_one(folder):
    path = folder / "impressions.parquet"
    content = pq.read_table(path)
    names = ["clickd" if name == "clicked" else name for name in content.column_names]
    pq.write_table(content.rename_columns(names), path)
    message = the_error(folder)
    assert f"{path} lacks column 'clicked'" in message
    assert "did you mean 'clickd'?" in message


@pytest.mark.parametrize(
    ("table", "column", "values", "advice"),
    [
        ("impressions", "clicked", pa.array([0.0, 1.0] * 5), r"expected an integer .* found double; cast"),
        ("impressions", "clicked", pa.array(["0", "1"] * 5), r"expected an integer .* found string; cast"),
        ("products", "title", pa.array([1, 2, 3, 4]), "expected string but found int64; cast"),
        ("relevance", "grade", pa.array(["high"] * 6), "expected an integer, such as int8 but found string"),
        (
            "purchases",
            "timestamp",
            pa.array(range(5)),
            "expected a timestamp with a time zone .* int64; cast",
        ),
        ("purchases", "timestamp", pa.array([NOON] * 5, pa.timestamp("us")), "no time zone.*tz_localize"),
        ("impressions", "product_id", pa.array([1.0] * 10), "cannot tell large ids apart; cast it to int64"),
        ("products", "product_id", pa.array([2**63] * 4, pa.uint64()), "beyond int64.*else to string"),
        ("products", "product_id", pa.array([1] * 4, pa.decimal128(20)), "beyond int64.*else to string"),
        ("impressions", "user_id", pa.nulls(10), "expected int64 or string but found null"),
    ],
)
def test_a_wrong_type_is_one_sentence_with_file_column_and_cure(folder, table, column, values, advice):
    path = rewrite(folder, table, column, values)
    message = the_error(folder)
    assert message.startswith(f"{path}, column {column!r}: ")
    assert re.search(advice, message), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("impressions", "clicked", pa.array([True, False] * 5)),
        ("impressions", "timestamp", pa.array([NOON] * 10, pa.timestamp("ns", tz="Europe/Paris"))),
        ("impressions", "user_id", pa.array(["a", "b"] * 5).dictionary_encode()),
        ("products", "title", pa.array(["a"] * 4, pa.large_string())),
        ("products", "price", pa.array([1] * 4, pa.decimal128(10, 2))),
        ("impressions", "impression_id", pa.array(range(10), pa.uint32())),
    ],
)
def test_types_that_lose_nothing_are_accepted(folder, table, column, values):
    rewrite(folder, table, column, values)
    assert column in InputTables.open(folder).columns(table)


def test_ids_of_different_kinds_in_two_tables_are_refused(folder):
    rewrite(folder, "purchases", "product_id", pa.array(["1"] * 5))
    message = the_error(folder)
    assert "int64 in" in message
    assert "string in" in message
    assert "nothing would match" in message


def test_files_of_one_table_must_agree_on_types(folder):
    (folder / "products.parquet").rename(folder / "first.parquet")
    (folder / "products").mkdir()
    (folder / "first.parquet").rename(folder / "products" / "a.parquet")
    other = pa.table({"product_id": ["x"], "title": ["t"], "aisle": ["a"]})
    pq.write_table(other, folder / "products" / "b.parquet")
    assert "write both with one type" in the_error(folder)


@pytest.mark.parametrize("kept", [0, 3, 200])
def test_a_half_written_file_is_named_with_its_size(folder, kept):
    path = folder / "purchases.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    message = the_error(folder)
    assert f"{path} ({kept} bytes) is not a complete Parquet file" in message
    assert "write it again" in message


def test_an_empty_table_is_refused(folder):
    pq.write_table(SCHEMAS["impressions"].empty_table(), folder / "impressions.parquet")
    assert f"{folder / 'impressions.parquet'} has no rows" in the_error(folder)


def test_an_empty_optional_table_may_be_left_out(folder):
    pq.write_table(SCHEMAS["purchases"].empty_table(), folder / "purchases.parquet")
    assert "or leave the table out" in the_error(folder)


def test_a_reserved_column_name_is_refused(folder):
    path = folder / "products.parquet"
    content = pq.read_table(path).append_column("file_row_number", pa.array(range(4)))
    pq.write_table(content, path)
    assert "rename it" in the_error(folder)


def test_a_further_attribute_that_is_asked_for_must_exist(folder):
    tables = InputTables.open(folder)
    tables.require_columns("products", ("price",), wanted_by="feature 'price'")
    with pytest.raises(InputError, match=r"feature 'cost' reads column 'prise' .* did you mean 'price'"):
        tables.require_columns("products", ("prise",), wanted_by="feature 'cost'")


def test_asking_for_an_absent_table_says_how_to_add_it(folder):
    (folder / "purchases.parquet").unlink()
    with pytest.raises(InputError, match=r"add purchases\.parquet"):
        InputTables.open(folder).rows("purchases")


def test_a_column_of_nulls_without_a_type_counts_as_absent(folder):
    path = folder / "impressions.parquet"
    content = pq.read_table(path).append_column("position", pa.nulls(10))
    pq.write_table(content, path)
    assert "position" not in InputTables.open(folder).columns("impressions")
    assert UTC_US in InputTables.open(folder).schema("impressions").types


def test_one_table_is_the_union_of_its_files_whatever_else_the_folder_holds(tmp_path):
    (tmp_path / "products").mkdir()
    tags = pa.array(["new"]).dictionary_encode()
    for name, columns in {
        "a": {"product_id": [1], "title": pa.nulls(1), "note": pa.nulls(1)},
        "b": {"product_id": [2], "title": ["tea"], "note": pa.nulls(1), "tag": tags},
        "_half": {"product_id": [3]},
    }.items():
        pq.write_table(pa.table(columns), tmp_path / "products" / f"{name}.parquet")
    table = open_table(tmp_path, "products", ["product_id", "tag"])
    assert table.schema.names == ["product_id", "title", "note", "tag"]
    assert table.to_table().to_pylist() == [
        {"product_id": 1, "title": None, "note": None, "tag": None},
        {"product_id": 2, "title": "tea", "note": None, "tag": "new"},
    ]
    assert find_table(tmp_path, "relevance") is None


def test_one_table_that_is_needed_must_be_there_with_its_columns(folder):
    with pytest.raises(InputError, match=r"products of .* must have the columns \['tag'\]; found product_id"):
        open_table(folder, "products", ["product_id", "tag"])
    (folder / "relevance.parquet").unlink()
    with pytest.raises(InputError, match=r"neither relevance\.parquet nor a folder relevance/"):
        open_table(folder, "relevance", ["query"])


def test_a_column_that_the_first_file_lacks_is_null_there_for_arrow_too(folder):
    content = pq.read_table(folder / "impressions.parquet")
    (folder / "impressions").mkdir()
    pq.write_table(content.drop_columns(["query"]), folder / "impressions" / "a.parquet")
    pq.write_table(content, folder / "impressions" / "b.parquet")
    (folder / "impressions.parquet").unlink()
    queries = InputTables.open(folder).dataset("impressions").to_table(columns=["query"])["query"].to_pylist()
    assert queries == [None] * 10 + content["query"].to_pylist()
