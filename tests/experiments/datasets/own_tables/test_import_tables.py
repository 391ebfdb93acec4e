"""Tables as people have them become the four input tables, or one sentence says what is in the way."""

import gzip
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.config import ConfigError, load_config, parse_config
from experiments.datasets.own_tables.import_tables import ImportedTables, import_tables
from experiments.datasets.own_tables.mapping import ImportMapping
from features.inputs.table_specs import TABLES
from features.inputs.tables import InputError, InputTables
from features.inputs.validation import validate

ARTICLES = """sku;name;category;gross_price;colour;shelf
007;"Tea; black";Tea;"1.234,50 EUR";red;01
008;Milk;Dairy;;white;02
009;"Bread ""rye"" loaf";;EUR 3,1;NaN;03
"""
SHOWN = """shown_at\tcustomer\tsku\trating\tsearch_words
01.07.2024 12:00:00\t5\t007\t4.5\ttea
27.10.2024 02:30:00\t6\t008\t3\t
01.12.2024 12:00:00\t5\t009\t5\tbread
"""
JUDGED = """{"search_words": "tea", "sku": "007", "label": "Exact"}
{"search_words": "tea", "sku": "008", "label": "Irrelevant", "remark": {"by": 1}}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A shop's exports under their own names, as in the shipped example."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "articles.csv").write_text(ARTICLES)
    (folder / "shown.csv.gz").write_bytes(gzip.compress(SHOWN.encode()))
    (folder / "judged.jsonl").write_text(JUDGED)
    return folder


EXAMPLE: dict[str, Any] = load_config(Path("import_tables"), ImportMapping).model_dump(exclude_unset=True)
EXAMPLE["relevance"]["file"] = "judged.jsonl"


def mapped(**changes: Any) -> ImportMapping:
    """The shipped example with tables changed: `impressions={"columns": {"clicked": "rating"}}`."""
    content = json.loads(json.dumps(EXAMPLE))
    for table, keys in changes.items():
        for key, value in keys.items():
            if isinstance(value, dict):
                content[table].setdefault(key, {}).update(value)
            else:
                content[table][key] = value
    return parse_config(content, ImportMapping, where="mapping.toml")


def run(source: Path, mapping: ImportMapping | None = None) -> tuple[ImportedTables, Path]:
    out = source.parent / "tables"
    return import_tables(source, out, mapping or ImportMapping(), threads=1), out


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def test_a_shop_with_other_names_and_local_times_becomes_tables_that_pass_validation(shop):
    summary, out = run(shop, mapped())
    assert rows_of(out, "products") == [
        {"product_id": "007", "title": "Tea; black", "aisle": "Tea", "price": 1234.5, "colour": "red"},
        {"product_id": "008", "title": "Milk", "aisle": "Dairy", "price": None, "colour": "white"},
        {"product_id": "009", "title": 'Bread "rye" loaf', "aisle": None, "price": 3.1, "colour": "NaN"},
    ]
    times = [
        datetime(2024, 7, 1, 10, tzinfo=UTC),  # summer time
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),  # the earlier of two
        datetime(2024, 12, 1, 11, tzinfo=UTC),
    ]
    rows = rows_of(out, "impressions")
    assert [(row["impression_id"], row["timestamp"], row["user_id"]) for row in rows] == [
        (0, times[0], 5),
        (1, times[1], 6),
        (2, times[2], 5),
    ]
    assert [(row["product_id"], row["clicked"], row["query"]) for row in rows] == [
        ("007", 1, "tea"),
        ("008", 0, None),
        ("009", 1, "bread"),
    ]
    assert rows_of(out, "purchases") == [
        {"timestamp": times[0], "user_id": 5, "product_id": "007", "purchase_id": 0},
        {"timestamp": times[2], "user_id": 5, "product_id": "009", "purchase_id": 1},
    ]
    assert rows_of(out, "relevance") == [
        {"query": "tea", "product_id": "007", "grade": 2, "source": "human"},
        {"query": "tea", "product_id": "008", "grade": 0, "source": "human"},
    ]
    assert validate(out, max_bad_share=0, threads=1).passed
    assert summary.rows == {"products": 3, "relevance": 2, "impressions": 3, "purchases": 2}
    said = " ".join(summary.notes)
    assert "products: left out shelf" in said
    assert "relevance: left out remark" in said
    assert "purchases are made of the clicked impressions" in said
    assert json.loads((out / "source.json").read_text())["notes"] == summary.notes


def test_the_mapping_names_every_column_of_every_table():
    for name, spec in TABLES.items():
        fields = type(ImportMapping().table(name).columns).model_fields
        assert list(fields) == [column.name for column in spec.columns]


def test_the_shipped_example_shows_every_key_of_the_mapping():
    text = (Path(__file__).parents[4] / "experiments/configs/import_tables.toml").read_text()
    for name in TABLES:
        table = ImportMapping().table(name)
        for key in type(table).model_fields:
            assert re.search(rf"\b{key}\b", text), f"{name}.{key}"
    for column in ("decimal", "currency", "format", "unit", "zone", "ambiguous", "at_least", "yes"):
        assert f"{column} = " in text
    uncommented = re.sub(r"^#(?=[\w\[])", "", text, flags=re.MULTILINE)
    assert "[impressions.constructed]" in uncommented


def test_tables_under_our_names_need_no_mapping(tmp_path):
    source = tmp_path / "in"
    (source / "impressions" / "day=2024-05-01" / "shop=7").mkdir(parents=True)
    (source / "products.csv").write_text(
        "product_id,Title,aisle,image\n1,tea,hot,i/a.png\n2,milk,cold,i/b.png\n"
    )
    (source / "i").mkdir()
    (source / "i" / "a.png").write_bytes(b"png")
    part = source / "impressions" / "day=2024-05-01" / "shop=7" / "part-0.csv"
    part.write_text("timestamp,user_id,product_id,clicked,later\n2024-05-01T12:00:00Z,u1,1,1,0.5\n")
    (source / "impressions" / "b.csv").write_text(
        "clicked;product_id;user_id;timestamp\nfalse;2;u2;2024-05-01 12:00:00.5+02:00\n"
    )
    mapping = parse_config({"impressions": {"further": "keep"}}, ImportMapping, where="x")
    summary, out = run(source, mapping)
    assert rows_of(out, "impressions") == [
        {
            "impression_id": 0,
            "timestamp": datetime(2024, 5, 1, 10, 0, 0, 500_000, tzinfo=UTC),
            "user_id": "u2",
            "product_id": 2,
            "clicked": 0,
            "day": None,
            "shop": None,
            "later": None,
        },
        {
            "impression_id": 1,
            "timestamp": datetime(2024, 5, 1, 12, tzinfo=UTC),
            "user_id": "u1",
            "product_id": 1,
            "clicked": 1,
            "day": "2024-05-01",
            "shop": 7,
            "later": 0.5,
        },
    ]
    assert (out / "i" / "a.png").read_bytes() == b"png"
    assert "1 of 2 images are not files" in " ".join(summary.notes)


def test_parquet_keeps_its_types_and_its_partitions(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    table = pa.table(
        {
            "ID": pa.array([1.0, 2.0, None]),
            "Title": ["a", "b", "c"],
            "cost": pa.array([1.5, float("nan"), None]),
            "tags": [["x"], [], None],
        }
    )
    (source / "catalogue" / "aisle=tea").mkdir(parents=True)
    pq.write_table(table, source / "catalogue" / "aisle=tea" / "a.parq")
    mapping = {
        "file": "catalogue",
        "further": "keep",
        "columns": {"product_id": "ID", "price": "cost"},
    }
    _, out = run(source, parse_config({"products": mapping}, ImportMapping, where="x"))
    assert rows_of(out, "products") == [
        {"product_id": 1, "title": "a", "aisle": "tea", "price": 1.5, "tags": ["x"]},
        {"product_id": 2, "title": "b", "aisle": "tea", "price": None, "tags": []},
        {"product_id": None, "title": "c", "aisle": "tea", "price": None, "tags": None},
    ]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("1714564800", "s", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("1714564800.25", "s", datetime(2024, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)),
        ("1714564800123", "ms", datetime(2024, 5, 1, 12, 0, 0, 123_000, tzinfo=UTC)),
        ("1714564800123456999", "ns", datetime(2024, 5, 1, 12, 0, 0, 123_456, tzinfo=UTC)),
    ],
)
def test_numbers_are_moments_in_the_unit_that_is_named(shop, value, unit, expected):
    (shop / "orders.csv").write_text(f"at,customer,sku\n{value},5,007\n")
    columns = {"timestamp": {"column": "at", "unit": unit}, "user_id": "customer", "product_id": "sku"}
    _, out = run(shop, mapped(purchases={"from_clicks": False, "file": "orders.csv", "columns": columns}))
    assert [row["timestamp"] for row in rows_of(out, "purchases")] == [expected]


def shown_at(**keys: Any) -> dict[str, Any]:
    return {"columns": {"timestamp": {"column": "shown_at", "format": "%d.%m.%Y %H:%M:%S", **keys}}}


@pytest.mark.parametrize(
    ("table", "changes", "advice"),
    [
        (
            "impressions",
            shown_at(),
            r"shown\.csv\.gz, column 'shown_at' \(impressions\.columns\.timestamp\): 3 times, such as "
            r"'01\.07\.2024 12:00:00', have no offset from UTC.*zone = 'Europe/Berlin'",
        ),
        (
            "impressions",
            shown_at(zone="Europe/Berlin"),
            r"1 of 3 values, such as '27\.10\.2024 02:30:00', occur twice in .*ambiguous = 'earlier'",
        ),
        (
            "impressions",
            {"columns": {"timestamp": {"column": "shown_at", "zone": "UTC"}}},
            r"3 of 3 values, such as '01\.07\.2024 12:00:00', are no times in ISO 8601; say how",
        ),
        (
            "impressions",
            {"columns": {"clicked": "rating"}},
            r"column 'rating' \(impressions\.columns\.clicked\): 3 of 3 values.* neither 0 nor 1; .*at_least",
        ),
        (
            "impressions",
            {"columns": {"user_id": "costumer"}},
            r"has no column 'costumer' \(impressions\.columns\.user_id\); did you mean 'customer'\?",
        ),
        (
            "products",
            {"columns": {"price": {"column": "gross_price", "decimal": "."}}},
            r"column 'gross_price' \(products\.columns\.price\): 2 of 3 values, such as .* are no numbers",
        ),
        (
            "products",
            {"columns": {"price": {"column": "gross_price", "decimal": ",", "currency": "USD"}}},
            r"2 of 3 values.* are no numbers; .*currency",
        ),
        ("products", {"further": ["size"]}, r"has no column 'size' \(products\.further\)"),
        ("products", {"file": "artcles.csv"}, r"has no 'artcles\.csv' \(products\.file\); did you mean"),
        ("products", {"delimiter": "|"}, r"has no column 'sku'.*; it has sku;name;category"),
        (
            "relevance",
            {"columns": {"grade": {"column": "label", "values": {"Exact": 2}}}},
            r"judged\.jsonl, column 'label' .*: 1 of 2 values, such as 'Irrelevant', are none of 'Exact'",
        ),
        (
            "products",
            {"columns": {"image": "name"}, "absent": []},
            None,
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_table_column_and_key(shop, table, changes, advice):
    content = json.loads(json.dumps(EXAMPLE))
    columns = changes.pop("columns", {})
    content[table].update(changes)
    content[table].setdefault("columns", {}).update(columns)
    mapping = parse_config(content, ImportMapping, where="x")
    if advice is None:
        run(shop, mapping)
        return
    with pytest.raises(InputError) as caught:
        run(shop, mapping)
    assert re.search(advice, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (shop.parent / "tables").exists()


def test_a_local_time_that_no_clock_showed_is_refused(shop):
    (shop / "shown.csv.gz").write_bytes(gzip.compress(SHOWN.replace("27.10.2024", "31.03.2024").encode()))
    with pytest.raises(
        InputError, match=r"'31\.03\.2024 02:30:00', never showed on a clock in Europe/Berlin"
    ):
        run(shop, mapped())


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("sku;name;category\n1;a;b\n2;c\n", r"articles\.csv line 3 has 2 fields, but the first line names 3"),
        ("sku;name;;x\n1;a;b;c\n", r"articles\.csv line 1: field 3 of the header is empty"),
        ("sku;name;SKU\n1;a;b\n", r"articles\.csv line 1: more than one column is named 'sku'"),
        ("", r"articles\.csv is empty"),
        ("sku;name;category;gross_price;colour\n", r"articles\.csv has no rows"),
    ],
)
def test_a_broken_csv_is_named_with_its_line(shop, text, advice):
    (shop / "articles.csv").write_text(text)
    columns = {"product_id": "sku", "title": "name", "aisle": "category"}
    content = {"products": {"file": "articles.csv", "columns": columns}}
    with pytest.raises(InputError, match=advice):
        run(shop, parse_config(content, ImportMapping, where="x"))


def test_the_unnamed_row_numbers_of_pandas_are_a_column_called_index(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "products.csv").write_text(",product_id,title,aisle\n0,7,a,b\n")
    _, out = run(source, parse_config({"products": {"further": ["index"]}}, ImportMapping, where="x"))
    assert rows_of(out, "products") == [{"product_id": 7, "title": "a", "aisle": "b", "index": 0}]


def test_latin_1_is_refused_until_it_is_named(shop):
    (shop / "articles.csv").write_bytes(ARTICLES.replace("Milk", "Käse").encode("latin-1"))
    with pytest.raises(InputError, match=r"is not utf-8; name its encoding in the mapping"):
        run(shop, mapped())
    _, out = run(shop, mapped(products={"encoding": "latin-1"}))
    assert rows_of(out, "products")[1]["title"] == "Käse"


def test_a_column_that_is_not_there_has_to_be_named_absent(shop):
    text = "\n".join(line.split(";")[0] + ";" + line.split(";")[1] for line in ("sku;name", "1;a"))
    (shop / "articles.csv").write_text(text + "\n")
    columns = {"product_id": "sku", "title": "name"}
    only = {"products": {"file": "articles.csv", "columns": columns}}
    with pytest.raises(
        InputError, match=r"no column 'aisle' \(category, coarse\).*products\.absent = \['aisle'\]"
    ):
        run(shop, parse_config(only, ImportMapping, where="x"))
    only["products"]["absent"] = ["aisle"]
    summary, out = run(shop, parse_config(only, ImportMapping, where="x"))
    assert rows_of(out, "products") == [{"product_id": 1, "title": "a", "aisle": None}]
    assert "products: no aisle in the source" in summary.notes[0]


def test_a_log_that_knows_no_users_says_so_in_its_mapping(tmp_path):
    source = tmp_path / "visits"
    source.mkdir()
    shown = "timestamp,product_id,clicked\n2024-05-01T12:00:00Z,7,1\n2024-05-01T13:00:00Z,8,0\n"
    (source / "impressions.csv").write_text(shown)
    content = {"products": {"from_logs": True}}
    advice = r"no column 'user_id' \(who saw it, .*impressions\.absent = \['user_id'\]"
    with pytest.raises(InputError, match=advice):
        run(source, parse_config(content, ImportMapping, where="x"))
    content["impressions"] = {"absent": ["user_id"]}
    _, out = run(source, parse_config(content, ImportMapping, where="x"))
    assert [(row["user_id"], row["product_id"]) for row in rows_of(out, "impressions")] == [
        (None, 7),
        (None, 8),
    ]
    report = validate(out, max_bad_share=0, threads=1)
    assert report.passed
    assert [found.rule for found in report.tables["impressions"].broken] == ["null_user_id"]


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ({"products": {"columns": {"sku": "x"}}}, "unknown key 'products.columns.sku'"),
        (
            {"impressions": {"columns": {"timestamp": {"column": "t", "zone": "Berlin"}}}},
            "zone must be a name",
        ),
        (
            {"impressions": {"columns": {"timestamp": {"column": "t", "format": "%d", "unit": "s"}}}},
            "not both",
        ),
        ({"products": {"absent": ["price"]}}, "only these columns can be absent: title, aisle"),
        (
            {"impressions": {"constructed": {}}, "purchases": {"from_clicks": True}},
            "purchases of impressions; leave one out",
        ),
        ({"relevance": {"columns": {"grade": {"column": "g", "limits": [2, 1]}}}}, "limits must rise"),
    ],
)
def test_a_mapping_that_contradicts_itself_is_refused(content, advice):
    with pytest.raises(ConfigError, match=re.escape(advice)):
        parse_config(content, ImportMapping, where="mapping.toml")


def test_files_of_two_formats_in_one_table_are_refused_by_name(tmp_path):
    source = tmp_path / "in"
    (source / "products").mkdir(parents=True)
    (source / "products" / "a.csv").write_text("product_id,title,aisle\n1,a,b\n")
    (source / "products" / "b.jsonl").write_text('{"product_id": 2}\n')
    with pytest.raises(InputError, match=r"files of several formats, such as a\.csv and b\.jsonl"):
        run(source)
    (source / "products" / "b.jsonl").rename(source / "products" / "b.xlsx")
    with pytest.raises(InputError, match=r"b\.xlsx is of no known format; its name must end in one of \.csv"):
        run(source)
    (source / "products" / "b.xlsx").unlink()
    (source / "products.tsv").write_text("product_id\n")
    with pytest.raises(InputError, match=r"holds products and products\.tsv; keep the one"):
        run(source)


def test_products_of_the_logs_stand_in_for_a_catalogue(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "purchases.csv").write_text(
        "timestamp,user_id,product_id\n2024-05-01T00:00Z,1,b\n2024-05-02T00:00Z,1,a\n2024-05-02T00:00Z,2,b\n"
    )
    with pytest.raises(
        InputError,
        match=r"holds no products table.*products\.from_logs = true.* It holds purchases\.csv; name theirs",
    ):
        run(source)
    (source / "orders.tsv").write_text("a\n")
    summary, out = run(source, parse_config({"products": {"from_logs": True}}, ImportMapping, where="x"))
    assert [row["product_id"] for row in rows_of(out, "products")] == ["a", "b"]
    assert "not read, as nothing names them: orders.tsv" in summary.notes
    assert InputTables.open(out).has_purchases


@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        ("products.csv", {"products": {"from_logs": True}}),
        ("purchases.jsonl", {"purchases": {"from_clicks": True}}),
        ("impressions.tsv.gz", {"impressions": {"constructed": {}}}),
    ],
)
def test_a_table_that_is_there_is_not_made_of_another(tmp_path, name, mapping):
    source = tmp_path / "in"
    source.mkdir()
    (source / name).write_bytes(b"")
    content = {**mapping} if "products" in mapping else {**mapping, "products": {"from_logs": True}}
    with pytest.raises(
        InputError, match=rf"makes {name.partition('.')[0]} of another table, but .*{name} is there"
    ):
        run(source, parse_config(content, ImportMapping, where="x"))


def test_purchases_alone_get_constructed_impressions_that_say_so(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    lines = [
        f"2024-05-{day:02d}T12:00Z,{user},{(day * user) % 5}" for day in range(1, 29) for user in (1, 2, 3)
    ]
    (source / "purchases.csv").write_text("timestamp,user_id,product_id\n" + "\n".join(lines) + "\n")
    content = {"products": {"from_logs": True}, "impressions": {"constructed": {"negatives": 2}}}
    summary, out = run(source, parse_config(content, ImportMapping, where="x"))
    rows = rows_of(out, "impressions")
    assert {row["constructed"] for row in rows} == {True}
    assert summary.constructed
    assert "CONSTRUCTED" in json.dumps(json.loads((out / "source.json").read_text())["notes"])
    assert [row["impression_id"] for row in rows] == list(range(len(rows)))
    first = {}
    for row in rows_of(out, "purchases"):
        first[row["product_id"]] = min(row["timestamp"], first.get(row["product_id"], row["timestamp"]))
    assert all(first[row["product_id"]] < row["timestamp"] for row in rows)
    assert validate(out, max_bad_share=0, threads=1).passed


def test_purchases_without_a_user_construct_no_impression_and_are_counted(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    lines = [f"2024-05-{day:02d}T12:00Z,{'' if day % 4 == 0 else day % 3},{day % 5}" for day in range(1, 29)]
    (source / "purchases.csv").write_text("timestamp,user_id,product_id\n" + "\n".join(lines) + "\n")
    content = {"products": {"from_logs": True}, "impressions": {"constructed": {"negatives": 2}}}
    summary, out = run(source, parse_config(content, ImportMapping, where="x"))
    assert "and 7 purchases without a user" in " ".join(summary.notes)
    assert None not in {row["user_id"] for row in rows_of(out, "impressions")}
    assert [row["user_id"] for row in rows_of(out, "purchases")].count(None) == 7


def test_the_command_prints_an_example_and_imports_by_it(shop):
    shown = CliRunner().invoke(app, ["import", "tables", "--example"])
    assert shown.exit_code == 0, shown.output
    path = shop.parent / "mapping.toml"
    path.write_text(shown.output.replace("judged.tsv", "judged.jsonl"))
    out = shop.parent / "out"
    done = CliRunner().invoke(app, ["import", "tables", str(shop), str(out), "--mapping", str(path)])
    assert done.exit_code == 0, done.output
    assert "left out shelf" in done.output.replace("\n", " ")
    assert InputTables.open(out).rows("products") == 3


def test_whole_ids_that_went_through_floats_are_the_ids_of_the_other_tables(tmp_path):
    """As pandas writes 7 where another id is null; users would have no history, and nobody would be told."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "products.csv").write_text("product_id,title,aisle\n10,Tea,Tea\n20,Milk,Dairy\n")
    shown = "timestamp,user_id,product_id,clicked\n"
    shown += "2024-01-01T00:00:00Z,7.0,10.0,1\n2024-01-02T00:00:00Z,,20.0,0\n"
    (shop / "impressions.csv").write_text(shown)
    (shop / "purchases.csv").write_text("timestamp,user_id,product_id\n2023-12-01T00:00:00Z,7,10\n")
    summary = import_tables(shop, tmp_path / "out", ImportMapping())
    rows = {
        name: pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("impressions", "purchases")
    }
    assert rows["impressions"]["user_id"].to_pylist() == [7, None]
    assert rows["impressions"]["product_id"].to_pylist() == [10, 20]
    assert rows["purchases"]["user_id"].to_pylist() == [7]
    assert "impressions: user_id is written as 7.0 instead of 7, and read as 7" in summary.notes
    (shop / "purchases.csv").write_text("timestamp,user_id,product_id\n2023-12-01T00:00:00Z,u7,10\n")
    import_tables(shop, tmp_path / "texts", ImportMapping())
    kept = pq.read_table(tmp_path / "texts" / "impressions.parquet")["user_id"].to_pylist()
    assert kept == ["7.0", None]  # where ids are texts, they stay as they are
