"""Each rule finds exactly the rows that break it, and every input row ends up in the clean copy or aside."""

import json
import shutil
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from features.inputs.findings import ValidationReport
from features.inputs.rules import RULES
from features.inputs.tables import InputError, InputTables
from features.inputs.validation import check_or_raise, validate
from tests.features.inputs.small_tables import (
    NOON,
    NOW,
    SCHEMAS,
    good_rows,
    grade,
    impression,
    product,
    purchase,
    rewrite,
    write_tables,
)

Rows = dict[str, list[dict[str, Any]]]


def validated(folder: Path, **options: Any) -> ValidationReport:
    return validate(folder, **{"now": NOW, "threads": 1, "max_bad_share": 0.9, **options})


def broken(report: ValidationReport) -> dict[str, list[str]]:
    """Broken rules by table."""
    found = {name: [rule.rule for rule in table.broken] for name, table in report.tables.items()}
    return {name: rules for name, rules in found.items() if rules}


def test_good_tables_break_no_rule_and_pass(tmp_path):
    report = validated(write_tables(tmp_path / "in", good_rows()), max_bad_share=0.0)
    assert broken(report) == {}
    assert report.passed
    report.raise_if_failed()
    check_or_raise(InputTables.open(tmp_path / "in"), now=NOW)


#: Rows that break one rule each, appended to the good ones.
BAD_ROWS = {
    "products": [
        (product(4, product_id=None), "null_product_id"),
        (product(2), "duplicate_product_id"),
        (product(5, price=-0.01), "bad_price"),
        (product(6, price=float("-inf")), "bad_price"),
        (product(7, price=float("inf")), "bad_price"),
    ],
    "relevance": [
        (grade(10, product_id=None), "null_product_id"),
        (grade(11, query="  "), "empty_query"),
        (grade(12, query=None), "empty_query"),
        (grade(12, query="\u3000\t"), "empty_query"),
        (grade(13, grade=3), "grade_out_of_range"),
        (grade(14, grade=None), "grade_out_of_range"),
        (grade(15, source=" "), "empty_source"),
        (grade(2), "duplicate_grade"),
        (grade(3, grade=1), "conflicting_grade"),
        (grade(16, product_id=77), "unknown_product"),
        (grade(17, product_id=5), "unknown_product"),
    ],
    "impressions": [
        (impression(20, impression_id=None), "null_impression_id"),
        (impression(22, timestamp=None), "null_timestamp"),
        (impression(26, product_id=None), "null_product_id"),
        (impression(28, clicked=2), "clicked_not_0_or_1"),
        (impression(30, clicked=None), "clicked_not_0_or_1"),
        (impression(31, click_timestamp=NOON), "click_before_impression"),
        (impression(32, timestamp=NOW + timedelta(days=2)), "incredible_timestamp"),
        (impression(34, timestamp=NOON.replace(year=1970)), "incredible_timestamp"),
        (impression(35, click_timestamp=NOW + timedelta(days=2)), "incredible_click_timestamp"),
        (impression(3), "duplicate_impression_id"),
        (impression(36, product_id=77), "unknown_product"),
    ],
    "purchases": [
        (purchase(10, timestamp=None), "null_timestamp"),
        (purchase(12, product_id=None), "null_product_id"),
        (purchase(13, timestamp=NOW.replace(year=2050)), "incredible_timestamp"),
        (purchase(3), "duplicate_purchase_id"),
        (purchase(14, product_id=77), "unknown_product"),
    ],
}

#: Rows that only break a rule of severity warn.
DOUBTFUL_ROWS = {
    "products": [(product(4, title=" "), "empty_title"), (product(5, aisle=None), "empty_aisle")],
    "impressions": [
        (impression(20, query=""), "empty_query"),
        (impression(22, click_timestamp=NOON + timedelta(days=1)), "click_time_without_click"),
        (impression(23, click_timestamp=None), "click_without_time"),
        (impression(25, click_timestamp=NOON + timedelta(days=2)), "click_after_log"),
        (impression(24, user_id=None), "null_user_id"),
        (impression(26, user_id="\u3000"), "null_user_id"),
    ],
    "purchases": [
        (purchase(11, user_id=None), "null_user_id"),
        (purchase(12, user_id=""), "null_user_id"),
    ],
}


def test_each_bad_row_is_set_aside_for_its_reason_alone_and_the_rest_is_the_clean_copy(tmp_path):
    rows = good_rows()
    for table, bad in BAD_ROWS.items():
        rows[table] += [row for row, _ in bad]
    folder = write_tables(tmp_path / "in", rows)
    report = validated(folder, quarantine=tmp_path / "aside", clean=tmp_path / "clean")
    for table, good in good_rows().items():
        aside = pq.read_table(tmp_path / "aside" / f"{table}.parquet").to_pylist()
        assert [row["_reason"] for row in aside] == [[rule] for _, rule in BAD_ROWS[table]]
        assert [row["_row"] for row in aside] == list(range(len(good), len(rows[table])))
        assert {row["_file"] for row in aside} == {f"{table}.parquet"}
        assert pq.read_table(tmp_path / "clean" / f"{table}.parquet").to_pylist() == good
        counts = {rule.rule: rule.rows for rule in report.tables[table].broken}
        assert counts == Counter(rule for _, rule in BAD_ROWS[table])


def test_every_rule_has_a_row_that_breaks_it():
    covered = {
        (table, rule) for rows in (BAD_ROWS, DOUBTFUL_ROWS) for table, bad in rows.items() for _, rule in bad
    }
    covered |= {("products", "unreadable_image"), ("purchases", "bad_quantity"), ("impressions", "bad_price")}
    assert covered == {(table, rule.name) for table, rules in RULES.items() for rule in rules}


def test_doubtful_rows_are_counted_and_stay(tmp_path):
    rows = good_rows()
    for table, doubtful in DOUBTFUL_ROWS.items():
        rows[table] += [row for row, _ in doubtful]
    folder = write_tables(tmp_path / "in", rows)
    report = validated(folder, max_bad_share=0.0, clean=tmp_path / "clean")
    assert report.passed
    for table, doubtful in DOUBTFUL_ROWS.items():
        counts = {rule.rule: rule.rows for rule in report.tables[table].broken}
        assert counts == Counter(rule for _, rule in doubtful)
        assert pq.read_table(tmp_path / "clean" / f"{table}.parquet").to_pylist() == rows[table]
    check_or_raise(InputTables.open(folder), now=NOW)


def test_a_click_is_after_the_log_a_day_after_its_last_impression_whose_own_time_is_credible(tmp_path):
    rows = good_rows()
    last = max(row["timestamp"] for row in rows["impressions"])
    day, instant = timedelta(days=1), timedelta(microseconds=1)
    rows["impressions"] += [
        impression(1001, timestamp=last, click_timestamp=last + day - instant),
        impression(1003, timestamp=last, click_timestamp=last + day),
        impression(1005, timestamp=NOW + 2 * day, click_timestamp=None),
    ]
    found = validated(write_tables(tmp_path / "in", rows)).tables["impressions"].broken
    (after,) = (finding for finding in found if finding.rule == "click_after_log")
    assert (after.severity, after.rows) == ("warn", 1)
    assert after.example is not None
    assert after.example.row == len(rows["impressions"]) - 2
    assert "24 hours or more after the log's last impression" in after.sentence


def test_optional_columns_are_held_to_their_rules(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    for table, column, values in (
        ("purchases", "quantity", [1, 2, 0, 1, 1]),
        ("impressions", "price", [1.0] * 9 + [float("inf")]),
    ):
        path = folder / f"{table}.parquet"
        pq.write_table(pq.read_table(path).append_column(column, pa.array(values)), path)
    assert broken(validated(folder)) == {"purchases": ["bad_quantity"], "impressions": ["bad_price"]}


@pytest.mark.parametrize(
    ("table", "row", "sentence"),
    [
        ("products", product(2), "products.parquet row 4, column 'product_id' is '2': an id must occur once"),
        ("impressions", impression(20, product_id=77), "row 10, column 'product_id' is '77': it must be in"),
        (
            "purchases",
            purchase(9, timestamp=None),
            "purchases.parquet row 5, column 'timestamp' is null: it must",
        ),
        ("purchases", purchase(3), "purchases.parquet row 5, column 'purchase_id' is '3': an id must occur"),
    ],
)
def test_the_light_check_names_the_first_bad_row_and_the_way_out(tmp_path, table, row, sentence):
    rows = good_rows()
    rows[table].append(row)
    tables = InputTables.open(write_tables(tmp_path / "in", rows))
    with pytest.raises(InputError) as caught:
        check_or_raise(tables, now=NOW)
    assert sentence in str(caught.value)
    assert "`dashclip validate DATA --out OUT --write-clean`" in str(caught.value)


def test_the_first_good_copy_of_an_id_stays(tmp_path):
    rows = good_rows()
    rows["impressions"] = [impression(3, clicked=7), *rows["impressions"], impression(3)]
    report = validated(write_tables(tmp_path / "in", rows), quarantine=tmp_path / "aside")
    aside = pq.read_table(tmp_path / "aside" / "impressions.parquet").to_pylist()
    reasons = {row["_row"]: row["_reason"] for row in aside}
    assert reasons == {0: ["clicked_not_0_or_1"], 11: ["duplicate_impression_id"]}
    assert report.tables["impressions"].quarantined == 2


def test_a_row_with_two_faults_has_two_reasons(tmp_path):
    rows = good_rows()
    rows["impressions"].append(impression(20, clicked=5, impression_id=None))
    validated(write_tables(tmp_path / "in", rows), quarantine=tmp_path / "aside")
    (row,) = pq.read_table(tmp_path / "aside" / "impressions.parquet").to_pylist()
    assert row["_reason"] == ["null_impression_id", "clicked_not_0_or_1"]


def test_rows_that_name_a_quarantined_product_go_with_it(tmp_path):
    rows = good_rows()
    rows["products"][3]["price"] = -1.0
    report = validated(write_tables(tmp_path / "in", rows))
    assert broken(report)["purchases"] == ["unknown_product"]
    assert report.tables["purchases"].quarantined == sum(r["product_id"] == 3 for r in rows["purchases"])


def test_too_large_a_bad_share_fails_with_a_sentence_and_leaves_no_clean_copy(tmp_path):
    rows = good_rows()
    rows["relevance"].append(grade(9, grade=3))
    folder = write_tables(tmp_path / "in", rows)
    report = validated(folder, max_bad_share=0.1, quarantine=tmp_path / "aside", clean=tmp_path / "clean")
    with pytest.raises(InputError) as caught:
        report.raise_if_failed()
    assert str(caught.value) == (
        "relevance.parquet row 6, column 'grade' is '3': it must be 0 (irrelevant), 1 (moderate) or 2 "
        "(high); map other scales to these; in all 1 of 7 rows of relevance (14.29%) break a rule, "
        "more than the 10.00% allowed: correct them, or `dashclip validate DATA --out OUT --write-clean "
        "--max-bad-share 0.15` goes on without them"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside", "in"]


def test_a_table_with_nothing_left_fails_whatever_share_is_allowed(tmp_path):
    rows = good_rows()
    rows["purchases"] = [purchase(i, product_id=99) for i in range(3)]
    report = validated(write_tables(tmp_path / "in", rows), max_bad_share=1.0)
    assert "which leaves nothing" in report.failures[0]


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_class_fail(tmp_path, label):
    rows = good_rows()
    for row in rows["impressions"]:
        row.update(clicked=label, click_timestamp=None)
    folder = write_tables(tmp_path / "in", rows)
    report = validated(folder)
    assert f"have clicked = {label}" in report.failures[0]
    with pytest.raises(InputError, match=f"impressions.parquet have clicked = {label}"):
        check_or_raise(InputTables.open(folder), now=NOW)


def test_rows_found_in_several_files_are_named_by_file_and_row(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    (folder / "impressions.parquet").unlink()
    (folder / "impressions").mkdir()
    for name, numbers in (("a", [1, 2]), ("b", [3, 1])):
        content = pa.Table.from_pylist([impression(i) for i in numbers], schema=SCHEMAS["impressions"])
        pq.write_table(content, folder / "impressions" / f"{name}.parquet")
    (finding,) = validated(folder).tables["impressions"].broken
    assert str(finding.example) == "impressions/b.parquet row 1"


def test_corrected_rows_can_be_fed_back_beside_the_clean_ones(tmp_path):
    rows = good_rows()
    rows["impressions"].append(impression(20, clicked=2, click_timestamp=None))
    folder = write_tables(tmp_path / "in", rows)
    validated(folder, quarantine=tmp_path / "aside", clean=tmp_path / "clean")
    again = tmp_path / "again"
    (tmp_path / "clean").rename(again)
    (again / "impressions").mkdir()
    (again / "impressions.parquet").rename(again / "impressions" / "a.parquet")
    aside = rewrite(tmp_path / "aside", "impressions", "clicked", pa.array([0], pa.int8()))
    aside.rename(again / "impressions" / "b.parquet")
    report = validated(again, max_bad_share=0.0, clean=tmp_path / "clean")
    assert report.passed
    assert report.tables["impressions"].rows == len(rows["impressions"])
    fed_back = pq.read_table(tmp_path / "clean" / "impressions" / "b.parquet")
    assert fed_back.to_pylist() == [impression(20)]


@pytest.fixture
def with_images(tmp_path: Path) -> Path:
    """Products 0 to 6: good PNG, good JPEG, cut PNG, cut JPEG, not an image, outside, null."""
    folder = write_tables(tmp_path / "in", good_rows())
    (folder / "images").mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / "images" / "0.png")
    noise.save(folder / "images" / "1.jpg")
    whole = {name: (folder / "images" / name).read_bytes() for name in ("0.png", "1.jpg")}
    (folder / "images" / "2.png").write_bytes(whole["0.png"][:-900])
    (folder / "images" / "3.jpg").write_bytes(whole["1.jpg"][:-900])
    (folder / "images" / "4.png").write_text("not an image")
    noise.save(tmp_path / "outside.png")
    names = ["images/0.png", "images/1.jpg", "images/2.png", "images/3.jpg", "images/4.png"]
    names += ["../outside.png", None]
    content = pa.Table.from_pylist([product(i) for i in range(7)], schema=SCHEMAS["products"])
    content = content.append_column("image", pa.array(names))
    pq.write_table(content, folder / "products.parquet")
    return folder


def test_unreadable_images_are_counted_and_their_products_stay(with_images, tmp_path):
    report = validated(with_images, max_bad_share=0.0, clean=tmp_path / "clean")
    (finding,) = report.tables["products"].broken
    assert (finding.rule, finding.severity, finding.rows) == ("unreadable_image", "warn", 4)
    assert finding.sentence.startswith("products.parquet row 2, column 'image' is 'images/2.png': the file")
    clean = sorted(path.name for path in (tmp_path / "clean" / "images").iterdir())
    assert clean == ["0.png", "1.jpg"]


def test_each_spelling_of_an_image_is_one_file_and_links_in_the_folder_belong_to_it(with_images, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "outside.png").rename(tmp_path / "store" / "5.png")
    (with_images / "linked").symlink_to(tmp_path / "store", target_is_directory=True)
    (with_images / "link.png").symlink_to(tmp_path / "store" / "5.png")
    names = ["images/0.png", "./images/0.png", "images/../images//0.png", "linked/5.png", "link.png"]
    names += ["linked/../../outside.png", "  "]
    rewrite(with_images, "products", "image", pa.array(names))
    report = validated(with_images, max_bad_share=0.0, clean=tmp_path / "clean")
    (finding,) = report.tables["products"].broken
    assert (finding.rule, finding.rows, finding.example.row) == ("unreadable_image", 1, 5)
    files = {path.relative_to(tmp_path / "clean").as_posix() for path in (tmp_path / "clean").rglob("*.png")}
    assert files == {"images/0.png", "linked/5.png", "link.png"}
    assert not any(path.is_symlink() for path in (tmp_path / "clean").rglob("*"))
    shutil.rmtree(tmp_path / "store")
    assert broken(validated(tmp_path / "clean")) == {"products": ["unreadable_image"]}
    assert [f.rows for f in validated(tmp_path / "clean").tables["products"].broken] == [1]


@pytest.mark.parametrize("name", ["/etc/logo.png", "..", "a\0.png", "x" * 300 + ".png"])
def test_an_image_path_that_no_file_can_have_is_unreadable(with_images, tmp_path, name):
    rewrite(with_images, "products", "image", pa.array(["images/0.png", name, None, None, None, None, None]))
    (finding,) = validated(with_images, clean=tmp_path / "clean").tables["products"].broken
    assert (finding.rule, finding.rows) == ("unreadable_image", 1)


def test_images_of_which_none_can_be_read_do_not_pass(with_images, tmp_path):
    names = ["0.png", "1.jpg", None, None, "", None, None]
    rewrite(with_images, "products", "image", pa.array(names))
    report = validated(with_images, clean=tmp_path / "clean")
    assert not report.passed
    assert not (tmp_path / "clean").exists()
    assert "none of the images of 2 products can be read; paths are relative to" in report.failures[0]
    assert [rule.rule for rule in report.tables["products"].broken] == [
        "unreadable_image",
        "no_readable_image",
    ]
    assert validated(with_images, check_images=False).passed


def test_images_can_be_left_unchecked(with_images):
    assert broken(validated(with_images, check_images=False)) == {}


def test_a_file_damaged_inside_is_refused_and_nothing_is_written(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    path = folder / "impressions.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged inside"):
        validated(folder, quarantine=tmp_path / "aside", clean=tmp_path / "clean")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_clean_copy_keeps_files_order_and_types_over_many_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("features.inputs.validation._BATCH_ROWS", 7)
    folder = write_tables(tmp_path / "in", good_rows())
    (folder / "impressions.parquet").unlink()
    (folder / "impressions").mkdir()
    users = pa.array([f"user {i % 5}" for i in range(60)]).dictionary_encode()
    for name, numbers in (("a", range(60)), ("b", range(60, 120))):
        rows = [impression(i, clicked=9 if i % 13 in (0, 6) else i % 2) for i in numbers]
        content = pa.Table.from_pylist(rows, schema=SCHEMAS["impressions"]).set_column(2, "user_id", users)
        pq.write_table(content, folder / "impressions" / f"{name}.parquet", row_group_size=11)
    validated(folder, clean=tmp_path / "clean")
    for name, numbers in (("a", range(60)), ("b", range(60, 120))):
        whole = pq.read_table(folder / "impressions" / f"{name}.parquet")
        clean = pq.read_table(tmp_path / "clean" / "impressions" / f"{name}.parquet")
        assert clean.equals(whole.filter(pa.array([i % 13 not in (0, 6) for i in numbers])))


def test_white_space_of_any_kind_is_no_text(tmp_path):
    rows = good_rows()
    rows["products"] += [product(4, title="\u3000"), product(5, aisle="\n")]
    rows["impressions"].append(impression(20, query="\xa0"))
    found = broken(validated(write_tables(tmp_path / "in", rows)))
    assert found == {"products": ["empty_title", "empty_aisle"], "impressions": ["empty_query"]}


def test_blank_ids_are_missing_ones_and_no_copies_of_each_other(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    rewrite(folder, "purchases", "purchase_id", pa.array(["a", "", "\u3000", "", None]))
    assert broken(validated(folder)) == {}
    check_or_raise(InputTables.open(folder), now=NOW)


@pytest.mark.parametrize("spelling", [".", "./", "../in", "", "/absolute"])
@pytest.mark.parametrize("in_a_folder", [False, True])
def test_however_the_folder_is_spelt_the_clean_copy_lacks_the_bad_rows(
    tmp_path, monkeypatch, spelling, in_a_folder
):
    rows = good_rows()
    rows["impressions"].insert(3, impression(10, clicked=7))
    folder = write_tables(tmp_path / "in", rows)
    file = "impressions.parquet"
    if in_a_folder:
        (folder / "impressions").mkdir()
        file = (folder / file).rename(folder / "impressions" / "part.parquet").relative_to(folder).as_posix()
    monkeypatch.chdir(folder)
    data = folder if spelling == "/absolute" else Path(spelling)
    out = tmp_path / "out"
    report = validated(data, quarantine=out / "aside", clean=out / "clean")
    (finding,) = report.tables["impressions"].broken
    assert (str(finding.example), finding.example.value) == (f"{file} row 3", "7")
    assert pq.read_table(out / "clean" / file)["clicked"].to_pylist() == [i % 2 for i in range(10)]
    (aside,) = pq.read_table(out / "aside" / "impressions.parquet").to_pylist()
    assert (aside["_file"], aside["_row"], aside["clicked"]) == (file, 3, 7)


def test_outputs_never_replace_the_input(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    for target in (folder, tmp_path):
        with pytest.raises(InputError, match="choose another folder"):
            validated(folder, clean=target)


def test_descriptions_travel_with_the_clean_copy(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    (folder / "marketplace.json").write_text('{"simulated": true}')
    validated(folder, clean=tmp_path / "clean")
    assert json.loads((tmp_path / "clean" / "marketplace.json").read_text()) == {"simulated": True}


def test_the_report_is_json_with_every_applied_rule(tmp_path):
    rows = good_rows()
    rows["purchases"].append(purchase(9, product_id=77))
    report = validated(write_tables(tmp_path / "in", rows))
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["passed"]
    assert content["tables"]["purchases"]["share"] == 1 / 6
    rules = {rule["rule"]: rule for rule in content["tables"]["purchases"]["rules"]}
    assert rules["null_user_id"]["rows"] == 0
    assert rules["unknown_product"]["example"] == {"file": "purchases.parquet", "row": 5, "value": "77"}


def test_the_outputs_of_an_earlier_validation_are_replaced_and_other_folders_are_not(tmp_path):
    rows = good_rows()
    rows["impressions"].append(impression(99, clicked=7))
    folder = write_tables(tmp_path / "in", rows)
    aside, clean = tmp_path / "aside", tmp_path / "clean"
    for _ in range(2):
        validated(folder, quarantine=aside, clean=clean, max_bad_share=0.9)
    assert [path.name for path in aside.iterdir()] == ["impressions.parquet"]
    others = write_tables(tmp_path / "others", good_rows())
    before = sorted(others.iterdir())
    for kind in ("quarantine", "clean"):
        with pytest.raises(FileExistsError, match="another kind"):
            validated(folder, max_bad_share=0.9, **{kind: others})
    assert sorted(others.iterdir()) == before


def test_the_clean_copy_of_partitions_has_their_rows_but_the_bad_one(tmp_path):
    folder = write_tables(tmp_path / "in", good_rows())
    whole = pq.read_table(folder / "impressions.parquet")
    (folder / "impressions.parquet").unlink()
    for product_id in range(4):
        rows = whole.filter(pa.compute.equal(whole["product_id"], product_id)).drop_columns(["product_id"])
        path = folder / "impressions" / f"product_id={product_id}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(rows, path)
    bad = pa.Table.from_pylist([impression(11, product_id=9)], schema=SCHEMAS["impressions"])
    (folder / "impressions" / "product_id=9").mkdir()
    pq.write_table(bad.drop_columns(["product_id"]), folder / "impressions" / "product_id=9" / "a.parquet")
    report = validated(folder, clean=tmp_path / "clean")
    finding = report.tables["impressions"]
    assert [(rule.rule, str(rule.example)) for rule in finding.broken] == [
        ("unknown_product", "impressions/product_id=9/a.parquet row 0")
    ]
    rows = InputTables.open(tmp_path / "clean").table("impressions").to_table().to_pylist()
    assert sorted(rows, key=lambda row: row["impression_id"]) == whole.to_pylist()


def test_a_price_that_is_nan_counts_as_not_known(tmp_path):
    rows = good_rows()
    rows["products"][1] = product(1, price=float("nan"))
    report = validated(write_tables(tmp_path / "in", rows), max_bad_share=0.0)
    assert broken(report) == {}
    check_or_raise(InputTables.open(tmp_path / "in"), now=NOW)


def test_ids_that_are_written_otherwise_in_another_table_are_shown_beside_it(tmp_path):
    good = broken(validated(write_tables(tmp_path / "good", good_rows())))
    assert "no_common_user" not in good.get("purchases", [])
    rows = good_rows()
    for row in rows["purchases"]:
        row["user_id"] += ".0"
    for row in rows["impressions"]:
        row["product_id"] += 1_000
    report = validated(write_tables(tmp_path / "in", rows))
    users = next(rule for rule in report.tables["purchases"].broken if rule.rule == "no_common_user")
    assert users.severity == "warn"
    assert "every history is empty; are the ids written alike?" in users.sentence
    products = next(rule for rule in report.tables["impressions"].broken if rule.rule == "unknown_product")
    assert "as no row names one, are ids written alike? products has 0" in products.sentence
