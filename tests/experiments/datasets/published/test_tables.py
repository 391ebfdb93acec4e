"""WANDS, ESCI and Instacart, in the layout of their files, become tables that pass validation."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import experiments
from experiments.cli import app
from experiments.config import load_config
from experiments.datasets.published.amazon_esci import import_esci
from experiments.datasets.published.instacart import import_instacart
from experiments.datasets.published.wands import import_wands
from features.inputs.tables import InputError, InputTables
from features.inputs.validation import validate
from features.schema import FeatureConfig

CONFIGS = Path(experiments.__file__).parent / "configs"


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def wands(folder: Path) -> Path:
    """The three files, parted by tabs, with an inch mark and quoted text as published."""
    folder.mkdir(parents=True)
    (folder / "product.csv").write_text(
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t"
        "rating_count\taverage_rating\treview_count\n"
        '0\tsolid wood 12" bed\tBeds\tFurniture / Bedroom / Beds\t"good, deep ""sleep"""\tcolor:oak|size:12\t'
        "15.0\t4.5\t15.0\n"
        "1\tslow cooker\t\t\t\t\t\t\t\n"
    )
    (folder / "query.csv").write_text(
        "query_id\tquery\tquery_class\n0\twood bed\tBeds\n1\tcooker\tSlow Cookers\n"
    )
    (folder / "label.csv").write_text(
        "id\tquery_id\tproduct_id\tlabel\n0\t0\t0\tExact\n1\t0\t1\tIrrelevant\n2\t1\t1\tPartial\n3\t0\t0\tPartial\n"
    )
    return folder


def test_wands_becomes_products_and_three_grades(tmp_path):
    out = tmp_path / "out"
    summary = import_wands(wands(tmp_path / "WANDS" / "dataset").parent, out)
    first, second = rows_of(out, "products")
    assert (first["product_id"], first["title"], first["aisle"]) == (0, 'solid wood 12" bed', "Furniture")
    assert first["description"] == 'good, deep "sleep"'
    assert (first["rating_count"], second["rating_count"], second["aisle"]) == (15.0, None, None)
    assert rows_of(out, "relevance") == [
        {"query": "wood bed", "product_id": 0, "grade": 2, "source": "human", "query_class": "Beds"},
        {"query": "wood bed", "product_id": 1, "grade": 0, "source": "human", "query_class": "Beds"},
        {"query": "cooker", "product_id": 1, "grade": 1, "source": "human", "query_class": "Slow Cookers"},
    ]
    assert summary.rows == {"products": 2, "relevance": 3}
    assert "1 judgements repeat" in " ".join(summary.notes)
    assert validate(out, max_bad_share=0, threads=1).passed
    said = json.loads((out / "source.json").read_text())
    assert (said["source"], said["licence"], said["simulated"]) == ("WANDS", "MIT", False)


@pytest.mark.parametrize(
    ("name", "old", "new", "advice"),
    [
        ("label.csv", "Partial", "Maybe", r"2 rows have a label other than 'Exact'.*such as 'Maybe'"),
        ("label.csv", "2\t1\t1", "2\t9\t1", r"1 rows name a query that is not there, such as '9'"),
        ("product.csv", "product_name", "name", r"product\.csv has no column 'product_name'.*as published\?"),
        (
            "query.csv",
            "1\tcooker\tSlow Cookers",
            "1\tcooker",
            r"line 3 has 2 fields, but the first line names 3",
        ),
    ],
)
def test_files_of_wands_that_are_not_as_published_are_named(tmp_path, name, old, new, advice):
    folder = wands(tmp_path / "wands")
    (folder / name).write_text((folder / name).read_text().replace(old, new))
    with pytest.raises(InputError, match=advice):
        import_wands(folder, tmp_path / "out")
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"holds no file {name}"):
        import_wands(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def esci(folder: Path) -> Path:
    """Both Parquet files: one product id in two locales, one judgement outside the small version."""
    folder.mkdir()
    rows = [
        # query, query_id, product, locale, label, small, large, split
        ("usb cable", 1, "B01", "us", "E", 1, 1, "train"),
        ("usb cable", 1, "B02", "us", "S", 1, 1, "train"),
        ("usb cable", 1, "B03", "us", "C", 1, 1, "train"),
        ("lamp", 2, "B01", "us", "I", 0, 1, "test"),
        ("cable", 3, "B01", "es", "E", 1, 1, "train"),
    ]
    names = [
        "query",
        "query_id",
        "product_id",
        "product_locale",
        "esci_label",
        "small_version",
        "large_version",
        "split",
    ]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    pq.write_table(
        pa.table({"example_id": list(range(len(rows))), **columns}),
        folder / "shopping_queries_dataset_examples.parquet",
    )
    products = [("B01", "us"), ("B02", "us"), ("B03", "us"), ("B04", "us"), ("B01", "es")]
    columns = {
        "product_id": [product for product, _ in products],
        "product_title": [f"{product} {locale}" for product, locale in products],
        "product_description": ["<p>x</p>", None, None, None, None],
        "product_bullet_point": pa.nulls(5, pa.string()),
        "product_brand": ["Acme", None, None, None, None],
        "product_color": [None, "red", None, None, None],
        "product_locale": [locale for _, locale in products],
    }
    pq.write_table(pa.table(columns), folder / "shopping_queries_dataset_products.parquet")
    return folder


def test_esci_becomes_the_products_and_grades_of_one_locale(tmp_path):
    out = tmp_path / "out"
    import_esci(esci(tmp_path / "esci"), out)
    assert [(row["product_id"], row["title"], row["aisle"]) for row in rows_of(out, "products")] == [
        ("B01", "B01 us", None),
        ("B02", "B02 us", None),
        ("B03", "B03 us", None),
    ]
    grades = [
        (row["query"], row["product_id"], row["grade"], row["esci_label"])
        for row in rows_of(out, "relevance")
    ]
    assert grades == [
        ("usb cable", "B01", 2, "E"),
        ("usb cable", "B02", 1, "S"),
        ("usb cable", "B03", 0, "C"),
        ("lamp", "B01", 0, "I"),
    ]
    assert validate(out, max_bad_share=0, threads=1).passed


def test_esci_small_leaves_out_what_the_small_version_does(tmp_path):
    import_esci(esci(tmp_path / "esci"), tmp_path / "out", version="small")
    assert {row["query"] for row in rows_of(tmp_path / "out", "relevance")} == {"usb cable"}
    import_esci(tmp_path / "esci", tmp_path / "out", locale="es")
    assert [row["title"] for row in rows_of(tmp_path / "out", "products")] == ["B01 es"]
    with pytest.raises(InputError, match="none of locale 'jp' and version 'large', such as 'us'"):
        import_esci(tmp_path / "esci", tmp_path / "out", locale="jp")


def instacart(folder: Path) -> Path:
    """The six files: two users, user 1 with orders on Sunday 08:00 (dow 1), 7 days and 30 days later."""
    folder.mkdir()
    (folder / "orders.csv").write_text(
        "order_id,user_id,eval_set,order_number,order_dow,order_hour_of_day,days_since_prior_order\n"
        "11,1,prior,1,1,08,\n12,1,prior,2,1,09,7.0\n13,1,train,3,3,10,30.0\n"
        "21,2,prior,1,0,23,\n22,2,test,2,0,07,7.0\n"
    )
    header = "order_id,product_id,add_to_cart_order,reordered\n"
    (folder / "order_products__prior.csv").write_text(header + "11,1,1,0\n11,2,2,0\n12,1,1,1\n21,2,1,0\n")
    (folder / "order_products__train.csv").write_text(header + "13,2,1,1\n13,3,2,0\n")
    (folder / "products.csv").write_text(
        'product_id,product_name,aisle_id,department_id\n1,"Tea, ""black""",5,9\n2,Milk,6,9\n3,Salt,6,8\n'
    )
    (folder / "aisles.csv").write_text("aisle_id,aisle\n5,tea\n6,basics\n")
    (folder / "departments.csv").write_text("department_id,department\n9,pantry\n8,other\n")
    return folder


def test_instacart_orders_follow_each_other_by_the_published_days_and_hours(tmp_path):
    out = tmp_path / "out"
    summary = import_instacart(instacart(tmp_path / "ic"), out, negatives=1)
    start = datetime(2000, 1, 1, tzinfo=UTC)
    hours = {11: 24 + 8, 12: 24 * 8 + 9, 13: 24 * 38 + 10, 21: 23}
    expected = [
        (hours[order], user, product, 1000 * order + place)
        for order, user, product, place in [
            (21, 2, 2, 1),
            (11, 1, 1, 1),
            (11, 1, 2, 2),
            (12, 1, 1, 1),
            (13, 1, 2, 1),
            (13, 1, 3, 2),
        ]
    ]
    found = [
        (
            (row["timestamp"] - start) / timedelta(hours=1),
            row["user_id"],
            row["product_id"],
            row["purchase_id"],
        )
        for row in rows_of(out, "purchases")
    ]
    assert found == expected
    assert rows_of(out, "products")[0] == {
        "product_id": 1,
        "title": 'Tea, "black"',
        "aisle": "tea",
        "department": "pantry",
    }
    shown = rows_of(out, "impressions")
    assert {row["constructed"] for row in shown} == {True}
    clicks = [(row["user_id"], row["product_id"]) for row in shown if row["clicked"]]
    assert clicks == [(1, 2), (1, 1), (1, 2)]  # not the first purchases of 2, 1 and 3
    said = " ".join(summary.notes)
    assert "clock is CONSTRUCTED" in said
    assert "impressions are CONSTRUCTED" in said
    assert validate(out, max_bad_share=0, threads=1).passed


def test_fewer_users_of_instacart_are_the_same_for_one_seed(tmp_path):
    source = instacart(tmp_path / "ic")
    orders = (source / "orders.csv").read_text()
    more = "".join(
        f"{100 * user + number},{user},prior,{number},{user % 7},1{number},{'' if number == 1 else '3.0'}\n"
        for user in range(3, 20)
        for number in (1, 2)
    )
    (source / "orders.csv").write_text(orders + more)
    with (source / "order_products__prior.csv").open("a") as file:
        for user in range(3, 20):
            file.write(f"{100 * user + 1},1,1,0\n{100 * user + 2},{1 + user % 3},1,0\n")
    users = []
    for seed in (0, 0, 1):
        import_instacart(source, tmp_path / "out", users=5, seed=seed)
        users.append({row["user_id"] for row in rows_of(tmp_path / "out", "purchases")})
    assert len(users[0]) == 5
    assert users[0] == users[1] != users[2]


def test_the_shipped_features_of_instacart_name_columns_that_the_import_writes(tmp_path):
    import_instacart(instacart(tmp_path / "ic"), tmp_path / "out", negatives=1)
    config = load_config(CONFIGS / "instacart_features.toml", FeatureConfig)
    tables = InputTables.open(tmp_path / "out")
    for feature in config.features:
        if feature.source != "timestamp":
            assert feature.column in tables.columns(feature.source)
    assert config.split.method == "per_user"


@pytest.mark.parametrize(("command", "make"), [("wands", wands), ("esci", esci), ("instacart", instacart)])
def test_the_commands_import_and_print_the_rows(tmp_path, command, make):
    source = make(tmp_path / "published")
    result = CliRunner().invoke(app, ["import", command, str(source), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "3 rows" in result.output
    assert (tmp_path / "out" / "products.parquet").exists()
