"""Encoders on data without grades, queries or images: what still runs, and what is said of the rest."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.evaluation.probe_report import ProbeReport
from embeddings.evaluation.probes import ProbeImpossibleError
from embeddings.stages.run_folder import InputConfig
from embeddings.tables.encode import encode_products
from experiments.cli import app
from experiments.encoders.pipeline import encoder_titles, measure_probes, measure_retrieval
from experiments.encoders.table1 import Table1
from experiments.encoders.title_to_image import _pairs_of_equals, measure_title_to_image
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import small_encoder

PRODUCTS = 48
HOLDOUT = HoldoutConfig(test_product_share=0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_catalog(tmp_path_factory.mktemp("ungraded") / "data", products=PRODUCTS)
    (folder / "relevance.parquet").unlink()
    return folder


@pytest.fixture(scope="module")
def encoders(data: Path) -> dict[str, DashClipEncoder]:
    """Of stage 0 and of stage 1, each with the table of its products."""
    found = {}
    for stage in ("initial", "pretrained"):
        folder = data.parent / stage
        encoder = small_encoder(seed=len(found)).save(folder / "encoder", stage=stage, trained_on={})
        encode_products(encoder, ProductCatalog.open(data), folder / "products")
        found[stage] = encoder
    return found


def called(*arguments: object, columns: int = 200) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, ["encode", *map(str, arguments)], env={"COLUMNS": str(columns)})
    return result.exit_code, result.output, result.exception


def test_the_aisle_probe_runs_without_grades_and_says_what_it_leaves_out(
    data: Path, encoders: dict[str, DashClipEncoder], tmp_path: Path
) -> None:
    code, output, error = called("probe", data, data.parent / "initial", data.parent / "pretrained", tmp_path)
    assert code == 0, error
    report = ProbeReport.model_validate_json((tmp_path / "probes.json").read_text())
    assert set(report.probes) == {"aisle"}
    assert len(report.left_out) == 4
    assert "Not measured: Relevance, split over pairs (as the paper)" in output
    assert (report.before.name, report.after.name) == ("before stage 1", "after stage 1")
    drawn = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert drawn == {"tsne_by_aisle", "confusion_aisle", "recall_by_aisle"}


def test_two_tables_of_one_stage_are_told_apart_by_their_folders(
    data: Path, encoders: dict[str, DashClipEncoder]
) -> None:
    initial = data.parent / "initial"
    assert encoder_titles([initial, initial]) == ["before stage 1 (initial)"] * 2


def test_without_aisles_and_grades_no_probe_is_possible_and_both_reasons_are_given(
    data: Path, encoders: dict[str, DashClipEncoder], tmp_path: Path
) -> None:
    table = pq.read_table(data / "products.parquet").drop_columns(["aisle"])
    pq.write_table(table, tmp_path / "products.parquet")
    (tmp_path / "images").symlink_to(data / "images")
    folders = (data.parent / "initial", data.parent / "pretrained")
    with pytest.raises(ProbeImpossibleError, match=r"no probe is possible: the aisle .*; the relevance"):
        measure_probes(tmp_path, *folders, holdout=HOLDOUT)


def test_titles_of_products_that_were_kept_from_training_look_for_their_images(
    data: Path, encoders: dict[str, DashClipEncoder], tmp_path: Path
) -> None:
    inputs = InputConfig(holdout=HOLDOUT)
    table = measure_title_to_image(data, encoders, tmp_path, inputs=inputs, k=PRODUCTS)
    assert (table.title, table.products) == ("Title to image", PRODUCTS)
    assert 0 < table.queries < PRODUCTS
    assert list(table.rows) == ["random", "initial", "pretrained"]
    recall = table.rows["initial"][f"recall_at_{PRODUCTS}"]
    assert recall is not None
    assert recall.mean == 1, "of all images, its own is one"


def test_an_encoder_whose_titles_are_its_images_finds_them_all(
    data: Path, encoders: dict[str, DashClipEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import experiments.encoders.title_to_image as module

    write = module.write_table
    options = {"modalities": ("text",)}
    monkeypatch.setattr(module, "write_table", lambda *given, **more: write(*given, **{**more, **options}))
    table = measure_title_to_image(data, {"same": encoders["initial"]}, tmp_path, inputs=InputConfig(), k=1)
    found = table.rows["same"]["mrr"]
    assert found is not None
    assert found.mean == 1


def test_evaluate_measures_encoders_without_queries(
    data: Path, encoders: dict[str, DashClipEncoder], tmp_path: Path
) -> None:
    code, output, error = called(
        "evaluate",
        data,
        tmp_path,
        "--row",
        f"dashclip={data.parent / 'pretrained'}",
        "--config",
        "encoders_tiny",
    )
    assert code == 0, error
    assert "Title to image" in output
    table = Table1.model_validate_json((tmp_path / "title_to_image.json").read_text())
    assert table.candidate == "dashclip"
    assert not (tmp_path / "table1.json").exists()
    assert (tmp_path / "title_to_image.md").read_text().startswith("# Title to image")


def test_evaluate_without_grades_says_what_is_possible(
    data: Path, encoders: dict[str, DashClipEncoder], tmp_path: Path
) -> None:
    (tmp_path / "products").symlink_to(data.parent / "initial" / "products")
    *_, error = called("evaluate", data, tmp_path / "out", "--row", f"lsa={tmp_path}")
    assert isinstance(error, ValueError)
    for words in ("table 1 needs queries with grades", "no relevance table", "--row NAME=ENCODER", "probe"):
        assert words in str(error)


def test_no_held_out_query_is_said_with_the_setting_that_holds_out_more(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24)
    holdout = HoldoutConfig(test_query_share=0.0)
    with pytest.raises(ValueError, match=r"none of the 16 graded queries .* raise test_query_share .*now 0"):
        measure_retrieval(data, {}, holdout=holdout)


def test_without_images_title_to_image_retrieval_says_what_is_missing(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24, without_image=set(range(24)))
    with pytest.raises(ValueError, match=r"needs products with an image and a title .* 0 have both"):
        measure_title_to_image(data, {}, tmp_path, inputs=InputConfig())


@given(st.lists(st.integers(0, 4)), st.lists(st.integers(0, 4)))
def test_pairs_of_equals_are_those_of_the_whole_matrix(asked: list[int], shown: list[int]) -> None:
    one, other = np.array(asked, np.int64), np.array(shown, np.int64)
    found = _pairs_of_equals(one, other)
    for got, expected in zip(found, np.nonzero(one[:, None] == other), strict=True):
        assert got.tolist() == expected.tolist()
