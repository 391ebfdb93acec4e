"""Whatever bad rows are mixed in, exactly those are set aside, each for its own reason."""

import random
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from features.inputs.tables import InputError, InputTables
from features.inputs.validation import check_or_raise, validate
from tests.features.inputs.small_tables import NOON, NOW, good_rows, grade, impression, purchase, write_tables

#: For each table, faults by the rule that must catch them; a fault is made from a fresh number.
FAULTS: dict[str, dict[str, Any]] = {
    "impressions": {
        "null_product_id": lambda n: impression(n, product_id=None),
        "clicked_not_0_or_1": lambda n: impression(n, clicked=-1),
        "click_before_impression": lambda n: impression(n, click_timestamp=NOON - timedelta(days=1)),
        "incredible_timestamp": lambda n: impression(2 * n, timestamp=NOW + timedelta(days=400)),
        "unknown_product": lambda n: impression(n, product_id=1000 + n),
        "duplicate_impression_id": lambda n: impression(n % 10),
    },
    "relevance": {
        "grade_out_of_range": lambda n: grade(n, grade=3),
        "empty_source": lambda n: grade(n, source=""),
        "unknown_product": lambda n: grade(n, product_id=-1),
        "duplicate_grade": lambda n: grade(n % 6),
        "conflicting_grade": lambda n: grade(n % 6, grade=(n % 6 + 1) % 3),
    },
    "purchases": {
        "null_timestamp": lambda n: purchase(n, timestamp=None),
        "unknown_product": lambda n: purchase(n, product_id=1000),
        "duplicate_purchase_id": lambda n: purchase(n % 5),
    },
}
SINGLE = [(table, rule) for table, rules in FAULTS.items() for rule in rules]


@settings(max_examples=15, deadline=None)
@given(faults=st.lists(st.sampled_from(SINGLE), max_size=12), order=st.randoms(use_true_random=False))
def test_exactly_the_bad_rows_are_set_aside_and_none_is_lost(faults, order: random.Random):
    tables = good_rows()
    marked: dict[str, list[tuple[dict[str, Any], str | None]]] = {
        name: [(row, None) for row in rows] for name, rows in tables.items()
    }
    for number, (table, rule) in enumerate(faults, start=100):
        bad = FAULTS[table][rule](number)
        is_copy = rule.startswith(("duplicate", "conflicting"))  # comes after its original, others anywhere
        place = len(marked[table]) if is_copy else order.randrange(len(marked[table]) + 1)
        marked[table].insert(place, (bad, rule))

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder = write_tables(home / "in", {t: [row for row, _ in rows] for t, rows in marked.items()})
        report = validate(
            folder, quarantine=home / "aside", clean=home / "clean", max_bad_share=0.95, threads=1, now=NOW
        )
        for table, rows in marked.items():
            expected = {i: [rule] for i, (_, rule) in enumerate(rows) if rule}
            path = home / "aside" / f"{table}.parquet"
            aside = pq.read_table(path).to_pylist() if path.exists() else []
            assert {row["_row"]: row["_reason"] for row in aside} == expected
            for row in aside:
                own = {key: value for key, value in row.items() if not key.startswith("_")}
                assert own == rows[row["_row"]][0]
            clean = pq.read_table(home / "clean" / f"{table}.parquet").to_pylist()
            assert clean == [row for row, rule in rows if rule is None]
            assert len(clean) + len(aside) == report.tables[table].rows
        refused = any(table != "relevance" for table, _ in faults)
        assert refused == _light_check_refuses(folder)


def _light_check_refuses(folder: Path) -> bool:
    try:
        check_or_raise(InputTables.open(folder), threads=1, now=NOW)
    except InputError:
        return True
    return False
