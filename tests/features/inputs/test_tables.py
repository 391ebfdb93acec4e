"""Opening the input tables: what is accepted, and the one sentence that each mistake gives."""

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.inputs.tables import (
    InputError,
    InputTable,
    InputTables,
    escape_glob,
    find_table,
    open_files,
    open_table,
)
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


def partitioned(folder: Path, table: str, column: str) -> pa.Table:
    """Put Hive partitions of a column in the place of the one file; gives the rows in their order."""
    content = pq.read_table(folder / f"{table}.parquet")
    (folder / f"{table}.parquet").unlink()
    for number, value in enumerate(content[column].unique().to_pylist()):
        rows = content.filter(pa.compute.equal(content[column], value)).drop_columns([column])
        path = folder / table / f"{column}={value}" / f"part-{number}.parq"
        path.parent.mkdir(parents=True)
        pq.write_table(rows, path)
    return content


def test_hive_partitions_are_columns_of_whole_numbers_or_text(folder):
    whole = partitioned(folder, "impressions", "product_id")
    products = partitioned(folder, "products", "aisle")
    tables = InputTables.open(folder)
    assert tables.path_glob("impressions") == str(folder / "impressions" / "**" / "*.parq")
    for name, content, key in (
        ("impressions", whole, "impression_id"),
        ("products", products, "product_id"),
    ):
        rows = sorted(read_both_ways(tables.table(name)), key=lambda row: row[key])
        assert rows == content.to_pylist()
    assert tables.schema("impressions").field("product_id").type == pa.int64()
    found = duckdb.sql(
        f"SELECT product_id, __file FROM {tables.scan_sql('impressions', positions=True)}"
    ).fetchall()
    assert all(f"/product_id={number}/" in file for number, file in found)


def test_a_column_that_the_files_hold_wins_over_their_partition(folder):
    content = pq.read_table(folder / "products.parquet")
    (folder / "products.parquet").unlink()
    (folder / "products" / "aisle=wrong").mkdir(parents=True)
    pq.write_table(content, folder / "products" / "aisle=wrong" / "a.parquet")
    assert read_both_ways(InputTables.open(folder).table("products")) == content.to_pylist()


def test_a_null_partition_is_null_and_its_type_comes_from_the_others(folder):
    content = pq.read_table(folder / "products.parquet")
    (folder / "products.parquet").unlink()
    for number, value in enumerate(["__HIVE_DEFAULT_PARTITION__", "7"]):
        path = folder / "products" / f"shelf={value}" / "a.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(content.slice(2 * number, 2), path)
    rows = read_both_ways(InputTables.open(folder).table("products"))
    assert {row["product_id"]: row["shelf"] for row in rows} == {0: None, 1: None, 2: 7, 3: 7}


def test_a_partition_with_a_zero_before_its_number_is_text(folder):
    content = pq.read_table(folder / "products.parquet")
    (folder / "products.parquet").unlink()
    for number, value in enumerate(["07", "7"]):
        path = folder / "products" / f"shelf={value}" / "a.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(content.slice(2 * number, 2), path)
    rows = read_both_ways(InputTables.open(folder).table("products"))
    assert {row["product_id"]: row["shelf"] for row in rows} == {0: "07", 1: "07", 2: "7", 3: "7"}


def test_files_in_plain_subfolders_beside_files_are_read(folder):
    whole = pq.read_table(folder / "impressions.parquet")
    in_files(folder, "impressions", whole.slice(0, 4))
    (folder / "impressions" / "later" / "b").mkdir(parents=True)
    pq.write_table(whole.slice(4), folder / "impressions" / "later" / "b" / "1.parquet")
    (folder / "impressions" / "_temporary").mkdir()
    (folder / "impressions" / "_temporary" / "half.parquet").write_bytes(b"half")
    tables = InputTables.open(folder)
    assert read_both_ways(tables.table("impressions")) == whole.to_pylist()


@pytest.mark.parametrize("name", ["part-1.csv", "later/part-00000", "notes.txt"])
def test_a_file_of_another_kind_in_the_folder_of_a_table_is_refused_by_name(folder, name):
    in_files(folder, "products", pq.read_table(folder / "products.parquet"))
    path = folder / "products" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("product_id\n9\n")
    message = the_error(folder)
    assert f"{path} is not named *.parquet" in message
    assert "dashclip import tables" in message


def test_a_parq_file_is_a_table_and_two_are_refused(folder):
    (folder / "products.parquet").rename(folder / "products.parq")
    assert InputTables.open(folder).rows("products") == 4
    pq.write_table(pq.read_table(folder / "products.parq"), folder / "products.parquet")
    assert "products.parquet and" in the_error(folder)


@pytest.mark.parametrize("name", ["products.csv", "impressions.tsv.gz", "purchases.jsonl"])
def test_a_table_of_another_format_does_not_count_as_absent(folder, name):
    (folder / f"{name.partition('.')[0]}.parquet").unlink()
    (folder / name).write_bytes(b"")
    message = the_error(folder)
    assert f"{folder / name} is not Parquet" in message
    assert "dashclip import tables" in message


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
    with pytest.raises(InputError, match="nowhere is not a folder"):
        open_table(tmp_path / "nowhere", "products", ["product_id"])


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
    assert table.schema.names == ["product_id", "title", "tag"]  # a column of nulls only counts as none
    assert table.to_table().to_pylist() == [
        {"product_id": 1, "title": None, "tag": None},
        {"product_id": 2, "title": "tea", "tag": "new"},
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
    queries = InputTables.open(folder).table("impressions").to_table(columns=["query"])["query"].to_pylist()
    assert queries == [None] * 10 + content["query"].to_pylist()


def in_files(folder: Path, table: str, *parts: pa.Table) -> None:
    """Put a table of several files in the place of the one file."""
    (folder / f"{table}.parquet").unlink()
    (folder / table).mkdir()
    for number, part in enumerate(parts):
        pq.write_table(part, folder / table / f"{number}.parquet")


def read_both_ways(table: InputTable) -> list[dict[str, object]]:
    """The rows, after checking that DuckDB and Arrow give the same."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        by_duckdb = connection.sql(f"SELECT * FROM {table.scan_sql()}").to_arrow_table()
    by_arrow = table.to_table()
    assert sorted(by_duckdb.to_pylist(), key=str) == sorted(by_arrow.to_pylist(), key=str)
    assert by_duckdb.schema.types == by_arrow.schema.types == table.schema.types
    return by_arrow.to_pylist()


@pytest.mark.parametrize(
    ("table", "wrong", "meant"),
    [
        ("impressions", "Clicked", "clicked"),
        ("impressions", "USER_ID", "user_id"),
        ("impressions", "Query", "query"),
        ("products", "Price", "price"),
        ("relevance", "GRADE", "grade"),
    ],
)
@pytest.mark.parametrize("both", [True, False], ids=["beside the right one", "instead of it"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_columns_that_differ_in_case_alone_are_refused_by_both_names(
    folder, table, wrong, meant, both, first
):
    path = folder / f"{table}.parquet"
    content = pq.read_table(path)
    place = 0 if first else content.num_columns
    content = content.add_column(place, wrong, content.column(meant))
    pq.write_table(content if both else content.drop_columns([meant]), path)
    message = the_error(folder)
    assert str(path) in message
    assert repr(wrong) in message
    assert repr(meant) in message
    assert "rename" in message
    with pytest.raises(InputError, match=repr(wrong)):
        find_table(folder, table)


def test_columns_that_differ_in_case_in_two_files_are_refused_by_both_files(folder):
    whole = pq.read_table(folder / "products.parquet").append_column("Weight", pa.array([1.0] * 4))
    other = whole.rename_columns([name.replace("Weight", "weight") for name in whole.column_names])
    in_files(folder, "products", whole.slice(0, 2), other.slice(2))
    message = the_error(folder)
    assert f"{folder / 'products' / '1.parquet'} has a column 'weight'" in message
    assert f"'Weight' of {folder / 'products' / '0.parquet'} in case alone" in message


def test_a_further_attribute_that_comes_twice_is_refused(folder):
    path = folder / "products.parquet"
    content = pq.read_table(path)
    for _ in range(2):
        content = content.append_column("weight", pa.array([1.0] * 4))
    pq.write_table(content, path)
    assert "has 2 columns named 'weight'; keep one" in the_error(folder)


@pytest.mark.parametrize("name", ["file_row_number", "FILE_ROW_NUMBER", "__FILE"])
def test_a_reserved_name_is_refused_in_any_case(folder, name):
    path = folder / "products.parquet"
    pq.write_table(pq.read_table(path).append_column(name, pa.array(range(4))), path)
    assert f"has a column {name!r}, a name reserved" in the_error(folder)
    with pytest.raises(InputError, match=name):
        open_table(folder, "products", ["product_id"])


def test_a_column_asked_for_in_another_case_gets_a_hint(folder):
    content = pq.read_table(folder / "products.parquet").append_column("WEIGHT", pa.array([1.0] * 4))
    pq.write_table(content, folder / "products.parquet")
    with pytest.raises(InputError, match="did you mean 'WEIGHT'"):
        InputTables.open(folder).require_columns("products", ("weight",), wanted_by="feature 'weight'")


def test_ids_of_32_and_64_bits_in_two_files_are_one_column(folder):
    large = 2**40
    narrow = pa.table({"product_id": pa.array([0, 1], pa.int32()), "title": ["a", "b"], "aisle": pa.nulls(2)})
    wide = pa.table(
        {"product_id": [2, large], "title": ["c", "d"], "aisle": ["tea", "tea"], "image": ["c", None]}
    )
    in_files(folder, "products", narrow, wide)
    for table in (InputTables.open(folder).table("products"), open_table(folder, "products", ["product_id"])):
        rows = read_both_ways(table)
        assert [row["product_id"] for row in rows] == [0, 1, 2, large]
        assert [row["image"] for row in rows] == [None, None, "c", None]
        assert [row["aisle"] for row in rows] == [None, None, "tea", "tea"]


def test_files_of_nanoseconds_and_microseconds_are_one_table_in_the_order_of_the_files(folder):
    whole = pq.read_table(folder / "purchases.parquet")
    fine = whole.set_column(0, "timestamp", whole.column("timestamp").cast(pa.timestamp("ns", tz="UTC")))
    in_files(folder, "purchases", fine.slice(0, 2), whole.slice(2, 2), fine.slice(4))
    assert read_both_ways(InputTables.open(folder).table("purchases")) == whole.to_pylist()


def test_positions_are_those_of_the_files_whatever_their_columns(folder):
    whole = pq.read_table(folder / "impressions.parquet")
    in_files(folder, "impressions", whole.slice(0, 4).drop_columns(["query"]), whole.slice(4))
    scan = InputTables.open(folder).scan_sql("impressions", positions=True)
    rows = duckdb.sql(f"SELECT impression_id, __file, file_row_number FROM {scan} ORDER BY 1").fetchall()
    files = [str(folder / "impressions" / f"{number}.parquet") for number in (0, 1)]
    assert rows == [(i, files[i >= 4], i if i < 4 else i - 4) for i in range(10)]


def test_row_groups_without_rows_change_nothing(folder):
    whole = pq.read_table(folder / "impressions.parquet")
    with pq.ParquetWriter(folder / "impressions.parquet", whole.schema) as writer:
        for part in (
            whole.slice(0, 0),
            whole.slice(0, 3),
            whole.slice(0, 0),
            whole.slice(3),
            whole.slice(0, 0),
        ):
            writer.write_table(part)
    tables = InputTables.open(folder)
    assert read_both_ways(tables.table("impressions")) == whole.to_pylist()
    assert tables.table("impressions").head(4, ["impression_id"]).to_pydict() == {
        "impression_id": [0, 1, 2, 3]
    }
    assert tables.has_queries


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_moments_between_two_are_found_in_any_unit(folder, unit):
    times = pq.read_table(folder / "impressions.parquet").column("timestamp")
    stored = times.cast(pa.timestamp(unit, tz="Europe/Paris"))
    if unit == "ns":
        stored = pa.compute.add(stored.cast(pa.int64()), 999).cast(stored.type)
    rewrite(folder, "impressions", "timestamp", stored)
    table = InputTables.open(folder).table("impressions")
    first_us, last_us = (int(times[row].cast(pa.int64()).as_py()) for row in (2, 5))
    for first, last, expected in [
        (first_us, last_us, [2, 3, 4, 5]),
        (first_us + 1, last_us - 1, [3, 4]),
        (last_us, last_us, [5]),
    ]:
        found = table.to_table(["impression_id"], between_us=("timestamp", first, last))
        assert found["impression_id"].to_pylist() == expected


def test_a_folder_named_like_a_file_is_named_with_the_cure(folder):
    (folder / "products.parquet").rename(folder / "whole.parquet")
    (folder / "products.parquet").mkdir()
    (folder / "whole.parquet").rename(folder / "products.parquet" / "part-0.parquet")
    assert f"products.parquet is a folder; rename it to {folder / 'products'}/" in the_error(folder)


def test_files_that_lie_anywhere_can_be_read_as_a_table(tmp_path):
    for number, kind in enumerate((pa.int32(), pa.int64())):
        columns = {"impression_id": pa.array([number], kind), "click_probability": [0.5]}
        pq.write_table(pa.table(columns), tmp_path / f"truth {number}.parquet")
    table = open_files("impressions", sorted(tmp_path.iterdir()))
    assert table.rows == 2
    assert read_both_ways(table) == [{"impression_id": i, "click_probability": 0.5} for i in (0, 1)]


def test_whole_and_fractional_prices_in_two_files_are_fractional(folder):
    whole = pq.read_table(folder / "products.parquet")
    place = whole.schema.get_field_index("price")
    first = whole.slice(0, 2).set_column(place, "price", pa.array([1, 2], pa.int32()))
    in_files(folder, "products", first, whole.slice(2))
    rows = read_both_ways(InputTables.open(folder).table("products"))
    assert [row["price"] for row in rows] == [1.0, 2.0, 1.5, 1.5]
