"""Grocery Store: photos become products, and frozen vectors are measured on the test photos."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from embeddings.embedding_table import EmbeddingTable
from experiments.cli import app
from experiments.datasets.encoder_runs import write_results
from experiments.datasets.grocery_store import GroceryClass, import_grocery_store
from experiments.datasets.grocery_store_photos import (
    CHANCE,
    MAJORITY,
    THUMBNAIL,
    GroceryStoreResults,
    evaluate_grocery_store,
    ranks,
    read_photos,
    thumbnails,
    to_markdown,
)
from features.inputs.tables import InputError

#: class, coarse class id, coarse class, colour of its pictures
CLASSES = [
    ("Golden-Delicious", 0, "Apple", (220, 200, 60)),
    ("Royal-Gala", 0, "Apple", (200, 60, 60)),
    ("Oatly-Oat-Milk", 1, "Oat-Milk", (90, 120, 220)),
    ("Lime", 2, "Lime", (60, 200, 60)),
]
HEADER = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)"
)
PHOTOS = {"train": 6, "val": 2, "test": 4}


def published(root, generator):
    """The published layout in small: noisy pictures of one colour for each class."""
    lines = [HEADER]
    lists = {name: [] for name in PHOTOS}
    for number, (name, coarse_id, coarse, colour) in enumerate(CLASSES):
        iconic = f"iconic-images-and-descriptions/Kind/{name}"
        paths = [f"{iconic}/{name}_Iconic.jpg"]
        for split, count in PHOTOS.items():
            for place in range(1, count + 1):
                paths.append(f"{split}/Kind/{name}/{name}_{place:03}.jpg")
                lists[split].append(f"{paths[-1]}, {number}, {coarse_id}")
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            noise = generator.integers(-30, 31, (12, 10, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(root / path)
        (root / iconic / f"{name}_Description.txt").write_text(f"{name} tastes\n good. ", encoding="utf-8")
        lines.append(f"{name},{number},{coarse},{coarse_id},/{paths[0]},/{iconic}/{name}_Description.txt")
    (root / "classes.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
    for split, content in lists.items():
        (root / f"{split}.txt").write_text("\n".join(content) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return published(tmp_path_factory.mktemp("source"), np.random.default_rng(0))


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "tables"
    import_grocery_store(source, out)
    return out


def test_every_photo_and_iconic_picture_is_a_product(source, tmp_path):
    summary = import_grocery_store(source, tmp_path / "out")
    assert (summary.classes, summary.coarse_classes, summary.iconic) == (4, 3, 4)
    assert (summary.train, summary.validation, summary.test) == (24, 8, 16)
    rows = pq.read_table(tmp_path / "out" / "products.parquet").to_pylist()
    assert len(rows) == len({row["product_id"] for row in rows}) == 52
    row = next(row for row in rows if row["product_id"] == "val/Kind/Royal-Gala/Royal-Gala_002.jpg")
    assert row == {
        "product_id": "val/Kind/Royal-Gala/Royal-Gala_002.jpg",
        "title": "Royal Gala Apple",
        "aisle": "Apple",
        "image": "images/val/Kind/Royal-Gala/Royal-Gala_002.jpg",
        "description": "Royal-Gala tastes good.",
        "split": "validation",
        "class_id": 1,
        "class_name": "Royal-Gala",
        "coarse_class_id": 0,
    }
    for row in rows:
        copy = tmp_path / "out" / row["image"]
        assert copy.read_bytes() == (source / row["product_id"]).read_bytes()


def test_a_title_names_the_class_and_its_kind_once():
    empty = GroceryClass(0, "", 0, "", "", "")
    for name, coarse, title in (
        ("Anjou", "Pear", "Anjou Pear"),
        ("Watermelon", "Melon", "Watermelon"),
        ("Oatly-Oat-Milk", "Oat-Milk", "Oatly Oat Milk"),
    ):
        assert replace(empty, name=name, coarse_name=coarse).title == title


def test_the_repository_around_the_data_set_may_be_given(source, tmp_path):
    (tmp_path / "repository").mkdir()
    shutil.copytree(source, tmp_path / "repository" / "dataset")
    assert import_grocery_store(tmp_path / "repository", tmp_path / "out").classes == 4


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("train.txt", "train/no.jpg, 0, 0", "line 25: .*no.jpg is missing"),
        ("train.txt", "train/no.jpg, 9, 0", "line 25: class id 9 is not in classes.csv"),
        ("train.txt", "train/no.jpg, 0, 2", "line 25: class 0 belongs to coarse class 0"),
        ("train.txt", "train/no.jpg, zero, 0", "line 25: the class id must be a whole number, not 'zero'"),
        ("train.txt", "train/no.jpg", "line 25: expected picture, class id, coarse class id"),
        ("train.txt", "../secret.jpg, 0, 0", "line 25: '../secret.jpg' must be a path inside"),
        ("test.txt", "train/Kind/Lime/Lime_001.jpg, 3, 2", "listed twice .train and test."),
        ("classes.csv", "Lime,3,Lime,2,/a,/b", "line 6: class id 3 occurs twice"),
        ("classes.csv", "Plum,4,Plum", "line 6: expected 6 fields but found 3"),
        ("classes.csv", "Plum,4,Plum,3,/a.jpg,/b.txt", "line 6: .*b.txt is missing"),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_written(source, tmp_path, name, line, said):
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    with (broken / name).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=said):
        import_grocery_store(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_missing_list_is_named_and_foreign_folders_stay(source, tmp_path):
    with pytest.raises(InputError, match=r"holds no classes\.csv"):
        import_grocery_store(tmp_path, tmp_path / "out")
    part = tmp_path / "part"
    shutil.copytree(source, part)
    (part / "val.txt").unlink()
    with pytest.raises(InputError, match=r"lacks val\.txt"):
        import_grocery_store(part, tmp_path / "out")
    with pytest.raises(FileExistsError, match="another kind"):
        import_grocery_store(source, part)
    with pytest.raises(ValueError, match="would replace the input"):
        import_grocery_store(source, source)


def test_the_command_prints_a_summary_and_replaces_an_older_import(source, tmp_path):
    for _ in range(2):
        arguments = ["import", "grocery-store", str(source), str(tmp_path / "out")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0
    assert "coarse classes (aisles)" in result.output
    assert "no queries, grades" in result.output


# ---- the evaluation


def table(folder, ids, vectors_ND):
    return EmbeddingTable.write(
        folder,
        ids=ids,
        vectors_ND=vectors_ND.astype(np.float32),
        encoder_id=folder.name,
        kind="product",
        normalised=False,
    )


def near_their_class(photos, noise, generator):
    """Photos around the axis of their class, the texts on it."""
    axes = np.eye(4)
    photo_ND = axes[photos.class_N] + noise * generator.normal(size=(len(photos.class_N), 4))
    return photo_ND, axes[photos.text_class_C]


@pytest.fixture(scope="module")
def measured(imported, tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("vectors"), np.random.default_rng(1)
    photos = read_photos(imported)
    images, texts = {}, {}
    for name, noise in (("clear", 0.05), ("noisy", 3.0)):
        photo_ND, text_CD = near_their_class(photos, noise, generator)
        images[name] = table(folder / f"{name}_images", photos.ids, photo_ND)
        texts[name] = table(folder / f"{name}_texts", photos.text_ids, text_CD)
    del texts["noisy"]
    return images, texts, evaluate_grocery_store(imported, images, texts, resamples=100)


def test_clear_vectors_are_classified_and_their_texts_are_found(measured):
    results = measured[2]
    clear = results.classification["clear"]
    assert clear.accuracy.mean == clear.macro_f1.mean == 1
    assert clear.coarse_accuracy.mean == clear.coarse_macro_f1.mean == 1
    assert results.retrieval["clear"].recall_at_1.mean == results.retrieval["clear"].mrr.mean == 1
    assert results.retrieval["clear"].coarse_recall_at_1.mean == 1
    assert results.classification["noisy"].accuracy.mean < 1
    assert "noisy" not in results.retrieval


def test_floors_come_by_themselves(measured):
    results = measured[2]
    majority, chance = results.classification[MAJORITY], results.retrieval[CHANCE]
    assert majority.accuracy.mean == 1 / 4
    assert majority.macro_f1.mean == pytest.approx(2 * 4 / (4 + 16) / 4)
    assert majority.coarse_accuracy.mean == 1 / 2
    assert chance.recall_at_1.mean == 1 / 4
    assert chance.mrr.mean == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert chance.coarse_recall_at_1.mean == pytest.approx((2 * 2 / 4 + 1 / 4 + 1 / 4) / 4)
    assert results.classification[THUMBNAIL].accuracy.mean > 0.9  # the pictures differ in colour alone
    assert (results.photos, results.classes) == ({"train": 24, "validation": 8, "test": 16}, 4)


def test_ranks_count_ties_against_the_right_text():
    scores = np.array([[0.9, 0.1, 0.5], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    rank_T, best_T = ranks(scores, np.array([0, 1, 0]))
    assert rank_T.tolist() == [1, 3, 3]
    assert best_T[[0, 2]].tolist() == [0, 2]


def test_chance_is_what_random_scores_reach_on_average():
    generator = np.random.default_rng(0)
    rank_T, _ = ranks(generator.normal(size=(20_000, 4)), generator.integers(0, 4, 20_000))
    assert np.mean(1 / rank_T) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=0.01)


def test_a_thumbnail_of_one_colour_is_that_colour(tmp_path):
    Image.new("RGB", (30, 17), (255, 0, 51)).save(tmp_path / "one.png")
    pixels_ND = thumbnails(tmp_path, ["one.png"])
    assert pixels_ND.shape == (1, 192)
    assert np.allclose(pixels_ND.reshape(-1, 3), [1, 0, 0.2])


def test_photos_without_a_vector_are_counted(imported, measured, tmp_path):
    images = measured[0]["clear"]
    kept = np.flatnonzero([not photo.startswith("test/Kind/Lime") for photo in images.ids.to_pylist()])
    fewer = table(tmp_path / "fewer", images.ids.take(pa.array(kept)), images.vectors_ND[1:][kept])
    results = evaluate_grocery_store(imported, {"fewer": fewer}, {}, resamples=10)
    assert results.classification["fewer"].photos_without_vector == 4
    assert results.classification["fewer"].accuracy.mean >= 12 / 16


def test_results_are_written_for_machines_and_people(measured, tmp_path):
    write_results(tmp_path, measured[2], to_markdown(measured[2]), command="as typed")
    content = json.loads((tmp_path / "results.json").read_text())
    assert GroceryStoreResults.model_validate({**content, "provenance": None}) == measured[2]
    clear = content["classification"]["clear"]
    assert clear["accuracy_low"] <= clear["accuracy"] <= clear["accuracy_high"]
    assert content["retrieval"][CHANCE]["recall_at_1_low"] is None
    page = (tmp_path / "results.md").read_text()
    assert "16 test photos of 4 classes (3 coarse)" in page
    assert "| clear | 1.0000 (1.0000 … 1.0000) |" in page


def test_tables_that_do_not_fit_are_refused(imported, measured, tmp_path):
    images, texts, _ = measured
    with pytest.raises(ValueError, match="texts without images: clear"):
        evaluate_grocery_store(imported, {}, texts)
    photos = read_photos(imported)
    wide = table(tmp_path / "wide", photos.text_ids, np.ones((4, 8)))
    with pytest.raises(ValueError, match=r"images have width 4 and .*wide 8"):
        evaluate_grocery_store(imported, {"clear": images["clear"]}, {"clear": wide}, resamples=2)
    part = table(tmp_path / "part", photos.text_ids[:3], np.ones((3, 4)))
    with pytest.raises(ValueError, match="no vector for 1 of 4 iconic products"):
        evaluate_grocery_store(imported, {"clear": images["clear"]}, {"clear": part}, resamples=2)
    with pytest.raises(ValueError, match="holds no products"):
        read_photos(tmp_path)
