"""The encoders on real data: from an import to results, in one command each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.evaluation.lexical import token_overlap
from experiments.cli import app
from experiments.config import load_config
from experiments.datasets.encoder_runs import photos_of, publish_results, write_table
from experiments.datasets.grocery_store import import_grocery_store
from experiments.datasets.home_depot_relevance import OVERLAP, Vectors, evaluate_home_depot
from experiments.encoders.config import EncodersConfig
from experiments.encoders.pipeline import run_align
from tests.embeddings.encoders.small_bert import save_bert, write_modules
from tests.embeddings.small_encoders import product_parts
from tests.experiments.datasets.test_grocery_store import published
from tests.experiments.datasets.test_home_depot import HOLDOUT, graded, tables

ROWS = ["untrained", "warm-ups", "dashclip"]
STAGE = "epochs = 1\nbatch_size = 32\nlearning_rate = 0.001\n"
HOME_DEPOT = f"""
size = "tiny"
vocab_size = 300
modalities = ["text"]
[holdout]
test_query_share = 0.3
validation_query_share = 0.2
[warmup]
{STAGE}
[align]
{STAGE}
title_query_weight = 1.0
in_batch_negatives = true
"""
GROCERY_STORE = f"""
size = "tiny"
text_columns = ["title", "description"]
[holdout]
test_product_share = 0
validation_product_share = 0.2
validation_within_groups = true
[warmup]
{STAGE}
[image_warmup]
{STAGE}
[pretrain]
{STAGE}
queue_size = 16
"""


def two_aisles(data: Path) -> Path:
    """Neighbours in different aisles, so that proxy negatives can be drawn."""
    products = pq.read_table(data / "products.parquet")
    aisles = pa.array(["even" if number // 6 % 2 else "odd" for number in range(len(products))])
    pq.write_table(products.set_column(2, "aisle", aisles), data / "products.parquet")
    return data


def called(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["encode", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def home_depot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Data, run and config."""
    folder = tmp_path_factory.mktemp("depot")
    data = two_aisles(graded(folder / "data", np.random.default_rng(0)))
    config = folder / "tiny.toml"
    config.write_text(HOME_DEPOT)
    other = folder / "other"
    tables(other, np.random.default_rng(1), noise=1.0)
    bert = write_modules(save_bert(folder / "bert"))
    further = ["--row", f"other={other}", "--published", f"bert={bert}", "--published-config", config]
    called("home-depot", data, folder / "run", "--config", config, *further)
    shutil.copy(folder / "run" / "results.json", folder / "first.json")
    return data, folder / "run", config


def test_home_depot_compares_the_trained_encoder_with_every_row(home_depot: tuple[Path, Path, Path]) -> None:
    run = home_depot[1]
    content = json.loads((run / "results.json").read_text())
    words = [OVERLAP, "bm25_stemmed", "char_tfidf"]
    vectors = ["lsa", "other", "bert_zero_shot", "bert_aligned", "dashclip"]
    rows = [*words, *vectors, *(f"{name} + {word}" for word in (OVERLAP, "char_tfidf") for name in vectors)]
    for measure in ("auc_high_vs_irrelevant", "macro_f1"):
        assert [name for name in content[measure] if not name.endswith(("_low", "_high"))] == rows
    assert content["encoders"]["dashclip"] == DashClipEncoder.load(run / "align" / "encoder").encoder_id
    assert content["encoders"]["lsa"].startswith("lsa-256")
    assert content["encoders"]["bert_zero_shot"].startswith("dashclip-initial")
    aligned = DashClipEncoder.load(run / "bert" / "align" / "encoder")
    assert content["encoders"]["bert_aligned"] == aligned.encoder_id
    assert content["holdout"] == {**HOLDOUT.model_dump()}
    said = "dashclip encode home-depot DATA OUT --config tiny.toml --published bert=bert --published-config"
    assert content["provenance"]["command"] == f"{said} tiny.toml"
    assert "| dashclip |" in (run / "results.md").read_text()


def test_a_second_call_trains_and_encodes_nothing_again(home_depot: tuple[Path, Path, Path]) -> None:
    data, run, config = home_depot
    kept = [run / "align" / "training.json", run / "tables" / "products" / "manifest.json"]
    before = [path.read_bytes() for path in kept]
    called("home-depot", data, run, "--config", config)
    assert [path.read_bytes() for path in kept] == before


def test_published_weights_alone_train_nothing_from_scratch(
    home_depot: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """What they are worth does not depend on the rows beside them, and a later call adds the others."""
    data, run, config = home_depot
    bert = run.parent / "bert"
    copied = shutil.copytree(run / "bert", tmp_path / "run" / "bert")
    further = ["--published", f"bert={bert}", "--published-config", config]
    called("home-depot", data, tmp_path / "run", "--only-published", *further)
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = [name for name in content["encoders"] if "+" not in name]
    assert rows == [OVERLAP, "bm25_stemmed", "char_tfidf", "lsa", "bert_zero_shot", "bert_aligned"]
    before = json.loads((run.parent / "first.json").read_text())
    for measure in ("auc_high_vs_irrelevant", "macro_f1", "macro_f1_of_cutoffs"):
        for row in ("bert_zero_shot", "bert_aligned"):
            assert content[measure][row] == before[measure][row]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "bert",
        "lsa",
        "results.json",
        "results.md",
    }
    said = "dashclip encode home-depot DATA OUT --published bert=bert --published-config tiny.toml"
    assert content["provenance"]["command"] == f"{said} --only-published"
    assert copied.is_dir()


def test_only_published_without_a_model_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["encode", "home-depot", str(tmp_path), str(tmp_path / "out"), "--only-published"]
    )
    assert result.exit_code == 2
    assert "NAME=MODEL" in result.output


def test_a_table_of_another_encoder_is_made_again(
    home_depot: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    data, run, _ = home_depot
    for stage in ("warmup/text", "align"):
        encoder = DashClipEncoder.load(run / stage / "encoder")
        table = write_table(encoder, data, tmp_path / "queries", modalities=("text",))
        assert table.manifest.encoder_id == encoder.encoder_id
        assert table.manifest.kind == "query"


def test_the_sum_of_cosine_and_overlap_orders_the_pairs(tmp_path: Path) -> None:
    data = graded(tmp_path / "data", np.random.default_rng(0))
    noisy: Vectors = tables(tmp_path / "noisy", np.random.default_rng(1), noise=4.0)
    results = evaluate_home_depot(data, {"noisy": noisy}, holdout=HOLDOUT, fused=("noisy",), resamples=20)
    auc = results.auc_high_vs_irrelevant
    # High titles alone name their query, which lifts their score by half a word at least.
    assert token_overlap("query 5", "thing query 5") - token_overlap("query 5", "thing 123") >= 0.5
    assert auc[f"noisy + {OVERLAP}"].mean > auc["noisy"].mean
    assert results.auc_differences[f"noisy + {OVERLAP} - noisy"].low > 0
    assert auc["noisy + char_tfidf"].mean > auc["noisy"].mean


@pytest.fixture(scope="module")
def grocery_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data and run."""
    folder = tmp_path_factory.mktemp("grocery")
    (folder / "source").mkdir()
    import_grocery_store(published(folder / "source", np.random.default_rng(0)), folder / "data")
    config = folder / "tiny.toml"
    config.write_text(GROCERY_STORE)
    called("grocery-store", folder / "data", folder / "run", "--config", config)
    return folder / "data", folder / "run"


def test_grocery_store_compares_the_encoder_with_itself_before_training(
    grocery_store: tuple[Path, Path],
) -> None:
    run = grocery_store[1]
    content = json.loads((run / "results.json").read_text())
    assert list(content["classification"]) == ["majority", "thumbnail", *ROWS]
    assert list(content["retrieval"]) == ["chance", *ROWS]
    ids = {
        name: EmbeddingTable.load(run / "tables" / name / "images" / "products").manifest.encoder_id
        for name in ROWS
    }
    assert len(set(ids.values())) == 3
    assert ids["untrained"].startswith("dashclip-initial")
    assert ids["warm-ups"].startswith("dashclip-initial")
    assert ids["dashclip"].startswith("dashclip-pretrained")
    for name, encoder_id in ids.items():
        assert content["classification"][name]["encoder_id"] == encoder_id


def test_photos_are_shown_to_published_words_which_stay_as_they_are(
    grocery_store: tuple[Path, Path], tmp_path: Path
) -> None:
    bert = write_modules(save_bert(tmp_path / "bert"))
    config = tmp_path / "tiny.toml"
    config.write_text(GROCERY_STORE.split("[pretrain]")[0])
    called("grocery-store", grocery_store[0], tmp_path / "run", "--config", config, "--start", bert)
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(content["retrieval"]) == ["chance", *ROWS[:2]]
    assert content["provenance"]["command"].endswith("--config tiny.toml --start bert")
    assert content["classification"]["warm-ups"]["photos_without_vector"] == 0
    before, after = (tmp_path / "run" / "tables" / name for name in ROWS[:2])
    texts, images = (
        [np.asarray(EmbeddingTable.load(folder / side / "products").vectors_ND) for folder in (before, after)]
        for side in ("texts", "images")
    )
    np.testing.assert_array_equal(*texts)
    assert images[0].shape == images[1].shape
    assert not np.allclose(*images)


def test_only_train_photos_are_trained_on(grocery_store: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = grocery_store
    seen = ProductCatalog.open(photos_of(data, tmp_path / "seen", split="train"))
    assert len(seen) == 24
    assert all(str(product).startswith("train/") for product in seen.ids.to_pylist())
    assert all(path is not None and path.is_file() for path in seen.image_paths)
    counts = json.loads((run / "pretrain" / "training.json").read_text())["counts"]
    assert counts["training_products"] + counts["evaluation_products"] == 24


def test_vectors_of_photos_do_not_know_the_title(grocery_store: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = grocery_store
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    products = pq.read_table(data / "products.parquet")
    titles = pa.array(["another title"] * len(products))
    place = products.schema.get_field_index("title")
    pq.write_table(products.set_column(place, "title", titles), renamed / "products.parquet")
    (renamed / "images").symlink_to(data / "images", target_is_directory=True)
    encoder = DashClipEncoder.load(run / "pretrain" / "encoder")
    again = write_table(encoder, renamed, tmp_path / "images" / "products", modalities=("image",))
    known = EmbeddingTable.load(run / "tables" / "dashclip" / "images" / "products")
    np.testing.assert_array_equal(np.asarray(again.vectors_ND), np.asarray(known.vectors_ND))


def test_a_folder_without_splits_or_with_other_things_is_refused(
    home_depot: tuple[Path, Path, Path], grocery_store: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no products with a split"):
        photos_of(home_depot[0], tmp_path / "seen", split="train")
    with pytest.raises(ValueError, match=r"no product of .* has split 'spring'"):
        photos_of(grocery_store[0], tmp_path / "seen", split="spring")
    with pytest.raises(FileExistsError, match="another kind"):
        photos_of(grocery_store[0], grocery_store[1], split="train")


def test_whole_classes_are_kept_aside_unless_products_are_asked_for(
    grocery_store: tuple[Path, Path], tmp_path: Path
) -> None:
    catalog = ProductCatalog.open(photos_of(grocery_store[0], tmp_path / "seen", split="train"))
    groups = {}
    for within in (False, True):
        parts = product_parts(catalog, 0.2, validation_within_groups=within)
        assert not (parts.train_P & parts.validation_P).any()
        assert (parts.train_P | parts.validation_P).all()
        groups[within] = set(catalog.group_P[parts.train_P]) & set(catalog.group_P[parts.validation_P])
    assert not groups[False]
    assert groups[True]


def test_published_results_are_those_of_the_run(home_depot: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run = home_depot[1]
    called("publish", run, "depot", "--results", tmp_path)
    assert json.loads((tmp_path / "depot.json").read_text()) == json.loads((run / "results.json").read_text())
    assert (tmp_path / "depot.md").read_bytes() == (run / "results.md").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"run `dashclip encode home-depot`"):
        publish_results(tmp_path / "none", "depot", results=tmp_path)


def test_the_shipped_configs_leave_out_the_stage_that_their_data_lack(tmp_path: Path) -> None:
    depot = load_config(Path("encoders_home_depot"), EncodersConfig)
    grocery = load_config(Path("encoders_grocery_store"), EncodersConfig)
    assert (depot.pretrain, grocery.align) == (None, None)
    assert depot.modalities == ("text",)
    with pytest.raises(ValueError, match=r"no \[align\] section"):
        run_align(tmp_path, tmp_path / "out", grocery)


def test_as_many_tokens_are_learned_as_the_config_says(home_depot: tuple[Path, Path, Path]) -> None:
    assert DashClipEncoder.load(home_depot[1] / "align" / "encoder").tokenizer.vocab_size <= 300
