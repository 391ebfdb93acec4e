"""Encoders are judged on what was kept from their own training, whatever config lies at hand."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from embeddings.catalog.holdout import TEST, HoldoutConfig
from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.relevance.grades import read_grades
from embeddings.stages.run_folder import InputConfig
from embeddings.tables.encode import encode_products, encode_queries
from embeddings.tables.lsa import embed_lsa
from embeddings.tables.narrow import narrow_table
from experiments.cli import app
from experiments.datasets.encoder_runs import measure_home_depot
from experiments.encoders.config import EncodersConfig
from experiments.encoders.pipeline import held_out_of, measure_probes, measure_retrieval
from experiments.encoders.table1 import Table1
from experiments.encoders.title_to_image import measure_title_to_image
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import small_encoder

OTHER = HoldoutConfig(test_query_share=0.4, validation_query_share=0.3, seed=3)
DEFAULT = HoldoutConfig()


def encoder_of(tables: Path) -> Path:
    return tables.parent / f"{tables.name} encoder"


def tables_of(data: Path, folder: Path, holdout: HoldoutConfig | None) -> Path:
    """Both tables of an encoder that says that it was trained with `holdout`, beside the encoder."""
    settings = {} if holdout is None else {"inputs": {"holdout": holdout.model_dump(mode="json")}}
    trained_on = {"settings": {}, "previous": {"settings": settings}}
    encoder = small_encoder().save(encoder_of(folder), stage="initial", trained_on=trained_on)
    encode_products(encoder, ProductCatalog.open(data), folder / "products")
    encode_queries(encoder, read_grades(data).queries, folder / "queries")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("held out") / "data", products=48)


@pytest.fixture(scope="module")
def other(data: Path) -> Path:
    return tables_of(data, data.parent / "other", OTHER)


def called(*arguments: object) -> BaseException | None:
    result = CliRunner().invoke(app, ["encode", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exception


def test_tables_say_what_was_kept_from_their_encoder_and_so_do_narrower_ones(
    other: Path, tmp_path: Path
) -> None:
    for kind in ("products", "queries"):
        table = EmbeddingTable.load(other / kind)
        assert HoldoutConfig.of_record(table.manifest.holdout) == OTHER
        narrow_table(table, tmp_path / kind, 4)
    assert held_out_of({"narrow": tmp_path}) == OTHER


def test_table_1_asks_what_the_encoder_held_out_and_not_what_a_config_would(
    data: Path, other: Path, tmp_path: Path
) -> None:
    assert called("evaluate", data, tmp_path, "--row", f"dashclip={other}") is None
    found = Table1.model_validate_json((tmp_path / "table1.json").read_text())
    grades = read_grades(data)
    assert found.queries == (grades.query_roles(OTHER) == TEST).sum()
    assert found.queries != (grades.query_roles(DEFAULT) == TEST).sum()
    assert "--config" not in (found.command or "")


def test_a_config_that_contradicts_the_record_is_refused_by_evaluate_and_probe(
    data: Path, other: Path, tmp_path: Path
) -> None:
    row, config = f"dashclip={other}", ("--config", "encoders_small")
    for error in (
        called("evaluate", data, tmp_path, "--row", row, *config),
        called("probe", data, other, other, tmp_path, *config),
        called("evaluate", data, tmp_path, "--row", f"dashclip={encoder_of(other)}", *config),
    ):
        assert isinstance(error, ValueError)
        for words in ("kept from its training", "seed = 3", "but the config says", "seed = 0", "or none"):
            assert words in str(error)
    assert not list(tmp_path.iterdir())


def test_python_and_the_published_data_sets_refuse_it_as_well(
    data: Path, other: Path, tmp_path: Path
) -> None:
    encoder = DashClipEncoder.load(encoder_of(other))
    for call in (
        lambda: measure_retrieval(data, {"dashclip": other}, holdout=DEFAULT),
        lambda: measure_probes(data, other, other, holdout=DEFAULT),
        lambda: measure_title_to_image(data, {"dashclip": encoder}, tmp_path, inputs=InputConfig()),
        lambda: measure_home_depot(data, tmp_path, encoder, EncodersConfig(modalities=("text",))),
    ):
        with pytest.raises(ValueError, match=r"but the config says .*seed = 0"):
            call()


def test_encoders_of_different_hold_outs_are_not_compared(data: Path, other: Path, tmp_path: Path) -> None:
    default = tables_of(data, tmp_path / "default", DEFAULT)
    with pytest.raises(ValueError, match=r"one hold-out, but default/products was trained with .*seed = 0"):
        measure_retrieval(data, {"other": other, "default": default})


def test_without_any_record_the_config_decides(data: Path, other: Path, tmp_path: Path) -> None:
    silent = tables_of(data, tmp_path / "silent", None)
    embed_lsa(data, tmp_path / "lsa", dim=4)
    rows = {"silent": silent, "lsa": tmp_path / "lsa"}
    assert held_out_of(rows, OTHER) == OTHER
    assert held_out_of(rows) == DEFAULT
    assert held_out_of(rows | {"other": other}) == OTHER, "one that says it speaks for those that do not"
