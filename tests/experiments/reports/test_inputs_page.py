"""The page of a data folder: its numbers are those of the tables, and what is missing is said."""

import datetime as dt
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from experiments.api import MarketplaceConfig, generate_marketplace
from experiments.cli import app
from experiments.projects.survey import survey
from experiments.reports.inputs import plots
from experiments.reports.inputs.facts import PURCHASE_STEPS, gather_facts
from experiments.reports.inputs.page import gather_inputs, is_data_folder
from experiments.reports.page import Absent, Section
from experiments.reports.sections_page import write_sections_page
from experiments.reports.tiles import product_tile
from experiments.statistics.cells import share
from features.inputs.origin import Origin
from features.inputs.tables import InputError, InputTables
from tests.experiments.reports.page_reader import assert_whole_and_self_contained

#: What a page may call its data.
KINDS = ("SIMULATED data", "CONSTRUCTED impressions", "Real data")


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    """A simulated marketplace of size tiny."""
    folder = tmp_path_factory.mktemp("market") / "shop"
    generate_marketplace(MarketplaceConfig.preset("tiny", seed=102, queries=200), folder)
    return folder


@pytest.fixture
def small(tmp_path) -> Path:
    """Six products and nothing else but a log of three days that says nothing of queries or purchases."""
    start = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
    pq.write_table(
        pa.table(
            {
                "product_id": list("abcdef"),
                "title": ["<b>Anchovies</b>", "Bread", "Corn", "Dates", "Eggs", "Figs"],
                "aisle": ["Fish", "Bakery", "Fruit", "Fruit", "Dairy", None],
            }
        ),
        tmp_path / "products.parquet",
    )
    rows = [("a", 0, 1), ("a", 0, 0), ("a", 2, 0), ("b", 2, 1), ("zz", 2, 0)]
    pq.write_table(
        pa.table(
            {
                "impression_id": [*range(5)],
                "timestamp": pa.array(
                    [start + dt.timedelta(days=day) for _, day, _ in rows], pa.timestamp("us", "UTC")
                ),
                "user_id": pa.array([1, 1, 2, None, 3], pa.int64()),
                "product_id": [product for product, _, _ in rows],
                "clicked": pa.array([clicked for _, _, clicked in rows], pa.int8()),
            }
        ),
        tmp_path / "impressions.parquet",
    )
    return tmp_path


def part(sections: list[Section | Absent], anchor: str) -> Section | Absent:
    [found] = [section for section in sections if section.anchor == anchor]
    return found


def cells(sections: list[Section | Absent], anchor: str, grid: int = 0) -> dict[str, tuple[str, ...]]:
    found = part(sections, anchor)
    assert isinstance(found, Section)
    return {row[0]: row[1:] for row in found.grids[grid].rows}


def test_the_command_makes_a_whole_page_that_says_simulated_first(market, tmp_path):
    done = CliRunner().invoke(app, ["report", str(market), "--out", str(tmp_path)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = assert_whole_and_self_contained(text)
    assert 0 < text.index("SIMULATED data") < text.index("<h1>")
    assert "What is in the folder shop" in reader.text
    assert sum(source.startswith("data:image/jpeg") for source in reader.sources) == 24, "pictures"
    assert sum(source.startswith("data:image/svg") for source in reader.sources) == 2, "plots"
    assert "dashclip init" in text
    assert '<figure class="narrow">' in text
    assert text.count("The numbers are in the tables of this page.") == 1, "not those of each day"
    assert str(tmp_path / "report.html") in done.output
    assert not (market / "report.html").exists()


def test_what_is_frequent_and_who_bought_is_what_a_slow_count_finds(market):
    facts = gather_facts(InputTables.open(market))
    shown = pq.read_table(market / "impressions.parquet").to_pydict()
    titles = dict(
        zip(*pq.read_table(market / "products.parquet").select(["product_id", "title"]), strict=True)
    )
    titles = {key.as_py(): value.as_py() for key, value in titles.items()}
    for column, found in (("query", facts.queries), ("product_id", facts.products)):
        names = [name for name in shown[column] if name is not None]
        counts = Counter(names)
        ordered = sorted(counts, key=lambda name: (-counts[name], name))
        clicks = Counter(
            name for name, clicked in zip(shown[column], shown["clicked"], strict=True) if clicked
        )
        expected = [(titles.get(name, name), counts[name], clicks[name]) for name in ordered[:10]]
        assert [tuple(one) for one in found.top] == expected
        assert (found.distinct, found.without) == (len(counts), len(shown[column]) - len(names))
        head, covered = 0, 0
        while covered < len(names) / 2:
            covered += counts[ordered[head]]
            head += 1
        assert found.head == head
    bought = Counter(pq.read_table(market / "purchases.parquet")["user_id"].to_pylist())
    groups = [max(step for step in PURCHASE_STEPS if step <= count) for count in bought.values()]
    assert list(facts.purchase_groups) == [groups.count(step) for step in PURCHASE_STEPS]
    users = set(shown["user_id"])
    assert (facts.shown_users, facts.shown_buyers) == (len(users), len(users & set(bought)))
    pairs = pq.read_table(market / "relevance.parquet")
    assert facts.grades == dict(
        Counter(zip(pairs["source"].to_pylist(), pairs["grade"].to_pylist(), strict=True))
    )


def test_every_column_of_every_table_is_counted(market):
    found = {(column.table, column.name): column for column in survey(market).columns}
    for name in ("products", "relevance", "impressions", "purchases"):
        table = pq.read_table(market / f"{name}.parquet")
        for column in table.column_names:
            counted = found.pop((name, column))
            assert counted.filled == len(table) - table[column].null_count
            assert counted.distinct == len(pc.unique(table[column].drop_null()))
    assert not found
    clicked = survey(market).column("impressions", "clicked")
    assert (clicked.low, clicked.high) == ("0", "1")


def test_a_small_log_says_what_it_lacks_and_what_is_wrong(small):
    sections = gather_inputs(small)
    text = " ".join(
        " ".join([section.answer, *section.sentences]) for section in sections if isinstance(section, Section)
    )
    assert "There is no table of relevance and none of purchases." in text
    assert "No click_timestamp" in text
    assert "3 days are fewer than the 15 of the usual split" in text
    assert "On 1 days in between nothing was shown." in text
    assert cells(sections, "volumes")["impressions"][0] == "5"
    assert cells(sections, "columns")["aisle"][2:4] == ("16.7 %", "4")
    assert cells(sections, "columns", 1)["timestamp"][4:] == ("2024-05-01 12:00", "2024-05-03 12:00")
    assert cells(sections, "columns", 1)["product_id"][4:] == ("", ""), "the least id says nothing"
    broken = cells(sections, "rows")
    assert broken["impressions.product_id"][2:] == ("1", "20.0 %"), "zz is no product"
    assert cells(sections, "frequent")["<b>Anchovies</b>"] == ("3", "1", "33.3 %")
    for absent in ("purchases", "grades", "images"):
        assert isinstance(part(sections, absent), Absent)


def test_rows_that_break_rules_are_shown_and_do_not_break_the_page(small):
    path = small / "impressions.parquet"
    log = pq.read_table(path)
    times = log["timestamp"].to_pylist()
    log = log.set_column(1, "timestamp", pa.array([None, *times[1:]], pa.timestamp("us", "UTC")))
    log = log.set_column(4, "clicked", pa.array([7, 1, 0, None, 0], pa.int8()))
    pq.write_table(log, path)
    sections = gather_inputs(small)
    broken = part(sections, "rows")
    assert isinstance(broken, Section)
    assert {"impressions.timestamp", "impressions.clicked"} <= {row[0] for row in broken.grids[0].rows}
    assert cells(sections, "frequent")["<b>Anchovies</b>"] == ("3", "1", "33.3 %"), "7 is no click"
    log = log.set_column(1, "timestamp", pa.array([None] * 5, pa.timestamp("us", "UTC")))
    pq.write_table(log, path)
    with pytest.raises(InputError, match=r"no impression of .* has a timestamp"):
        gather_inputs(small)


def test_names_from_the_tables_cannot_break_the_page(small):
    assert CliRunner().invoke(app, ["report", str(small)]).exit_code == 0
    text = (small / "report.html").read_text(encoding="utf-8")
    assert "<b>Anch" not in text
    assert "&lt;b&gt;Anch" in text
    assert "Real data" not in text, "nobody said that it is"
    assert "SIMULATED" not in text
    assert is_data_folder(small), "the page in the folder does not change what it is"


def test_a_catalogue_alone_has_a_page(small):
    (small / "impressions.parquet").unlink()
    sections = gather_inputs(small)
    assert isinstance(part(sections, "log"), Absent)
    models = part(sections, "models")
    assert isinstance(models, Section)
    assert models.answer == "It is not enough to train anything."
    assert "init" not in str(models.grids)


def test_a_folder_of_another_kind_gets_a_sentence(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "neither input tables" in str(done.exception)
    (tmp_path / "products.csv").write_text("product_id,title\n1,x\n")
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "import" in str(done.exception), "CSV is turned into Parquet by a command"


def test_shares_never_read_as_all_or_nothing_when_they_are_not():
    assert [share(*pair) for pair in ((0, 5), (5, 5), (1, 3), (1, 5_000), (9_999, 10_000))] == [
        "0 %",
        "100 %",
        "33.3 %",
        "0.02 %",
        "99.99 %",
    ]
    assert share(0, 0) == "–"


def test_the_interval_of_a_share_is_wilsons():
    low, high = plots.wilson(0, 10)
    assert (low, high) == pytest.approx((0, 0.2775), abs=1e-4)
    low, high = plots.wilson(30, 100)
    assert (low, high) == pytest.approx((0.2189, 0.3958), abs=1e-4)


def test_a_long_log_is_drawn_by_weeks_without_losing_a_click():
    days = [(day, day % 3) for day in range(200)]
    weeks = plots.periods("2024-02-26", days)
    assert [period.start.isoformat() for period in weeks[:2]] == ["2024-02-26", "2024-03-04"]
    assert sum(period.clicks for period in weeks) == sum(clicks for _, clicks in days)
    assert len(weeks[-1:]) == 1
    assert weeks[-1].impressions == 196 + 197 + 198 + 199
    assert len(plots.periods("2024-02-26", days[:120])) == 120
    assert len(plots.periods("2024-02-26", [(1, 0)] * 3_000)) == 108, "by four weeks"


def test_a_picture_is_small_and_one_that_cannot_be_read_is_blank(tmp_path):
    Image.new("RGBA", (900, 300), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    tile = product_tile(tmp_path / "clear.png", ("x" * 90, ""))
    assert tile.picture is not None
    assert len(tile.picture) < 3_000
    assert tile.lines == ("x" * 63 + "…",)
    (tmp_path / "broken.png").write_text("no picture")
    assert product_tile(tmp_path / "broken.png", ()).picture is None


def test_the_survey_estimates_only_beyond_a_size(market, monkeypatch):
    monkeypatch.setattr("experiments.projects.survey.EXACT_ROWS", 10)
    asked: list[str] = []
    connection = duckdb.connect()

    class Listening:
        def execute(self, sql: str):
            asked.append(sql)
            return connection.execute(sql)

    from experiments.projects.survey import _columns

    _columns(InputTables.open(market), "products", Listening())
    assert "approx_count_distinct(" in asked[0]
    assert "count(DISTINCT" not in asked[0]


def test_constructed_impressions_are_never_called_real(tmp_path):
    for origin, said in (
        (Origin(simulated=False, constructed=True), "CONSTRUCTED impressions"),
        (Origin(simulated=True, constructed=True), "SIMULATED data"),
        (Origin(simulated=False), "Real data"),
    ):
        page = write_sections_page(
            tmp_path, [], title="a", lead="b", origin=origin, command="c", rests_on="d"
        ).read_text(encoding="utf-8")
        assert [word for word in KINDS if word in page] == [said]
