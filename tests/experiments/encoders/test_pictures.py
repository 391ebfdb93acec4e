"""Pictures of encoders: drawn for every shape of the labels, the same bytes for the same numbers."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embeddings.evaluation.probes import ProbeConfig, ProbeLabels, VectorPair, aisle_probe, run_probes
from experiments.encoders import pictures as encoder_plots
from experiments.encoders.pictures import (
    MAX_AISLES,
    _densest,
    _look,
    confusion_matrices,
    cosines_by_grade,
    picture_bytes,
    recall_by_class,
    tsne_by_aisle,
    tsne_positions,
    write_pictures,
)

PRODUCTS, QUERIES = 60, 12


def small_world(aisles: int = 3) -> tuple[VectorPair, VectorPair, ProbeLabels]:
    rng = np.random.default_rng(0)
    product_N, query_N = (grid.ravel() for grid in np.indices((PRODUCTS, QUERIES)))
    pairs = [
        VectorPair(
            name,
            (
                np.eye(aisles, aisles + 1)[np.arange(PRODUCTS) % aisles]
                + 0.1 * rng.normal(size=(PRODUCTS, aisles + 1))
            ).astype(np.float32),
            rng.normal(size=(QUERIES, aisles + 1)).astype(np.float32),
        )
        for name in ("before", "after")
    ]
    names = [f"aisle {p % aisles}" for p in range(PRODUCTS)]
    return pairs[0], pairs[1], ProbeLabels(names, product_N, query_N, np.arange(len(product_N)) % 3)


def texts_of(figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_all_pictures_are_written_and_can_be_opened(tmp_path: Path) -> None:
    before, after, labels = small_world()
    report = run_probes(before, after, labels, config=ProbeConfig(seeds=(0,), hidden_dim=4, max_epochs=1))
    kept = {name: report.probes[name] for name in ("aisle", "relevance")}
    report = report.model_copy(update={"probes": kept})
    paths = write_pictures(tmp_path / "pictures", before, after, labels, report, seed=0)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {path.name for path in paths}
    assert {
        "tsne_by_aisle.png",
        "cosines_by_grade.svg",
        "confusion_relevance.png",
        "recall_by_aisle.svg",
    } <= names
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 300
        else:
            assert path.read_bytes().startswith(b"<?xml")


def test_too_few_products_for_a_map_leave_that_picture_out_and_no_other(tmp_path: Path) -> None:
    before, after, labels = small_world()
    report = run_probes(before, after, labels, config=ProbeConfig(seeds=(0,), hidden_dim=4, max_epochs=1))
    report = report.model_copy(update={"probes": {"aisle": report.probes["aisle"]}})
    few = replace(labels, aisles=[*labels.aisles[:7], *[None] * (len(labels.aisles) - 7)])
    names = {path.name for path in write_pictures(tmp_path, before, after, few, report, seed=0)}
    assert "recall_by_aisle.png" in names
    assert not any(name.startswith("tsne") for name in names)


def test_the_same_numbers_give_the_same_bytes() -> None:
    first, second = (picture_bytes(cosines_by_grade(*small_world()), kind="svg") for _ in range(2))
    assert first == second
    assert b"<dc:date>" not in first


def test_clusters_that_are_apart_stay_apart_in_the_plane_whatever_the_length_of_vectors() -> None:
    vectors_ND = small_world()[0].products_PD
    place_N2 = tsne_positions(vectors_ND, seed=0)
    assert place_N2.shape == (PRODUCTS, 2)
    distance_NN = np.linalg.norm(place_N2[:, None] - place_N2[None], axis=2) + 1e9 * np.eye(PRODUCTS)
    assert (distance_NN.argmin(axis=1) % 3 == np.arange(PRODUCTS) % 3).mean() > 0.95
    np.testing.assert_allclose(tsne_positions(4 * vectors_ND, seed=0), place_N2, atol=1e-3)
    with pytest.raises(ValueError, match="at least 8"):
        tsne_positions(vectors_ND[:7], seed=0)


def test_aisles_beyond_the_limit_are_grey_and_counted_and_zero_vectors_are_not_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder_plots, "tsne_positions", lambda vectors_ND, *, seed: vectors_ND[:, :2])
    before, after, labels = small_world(aisles=30)
    after.products_PD[0] = 0
    aisles = [None, *labels.aisles[1:-1], ""]
    found = texts_of(tsne_by_aisle(before, after, aisles, seed=0))
    assert "2 smaller aisles" in found
    assert "58 of 58" in found
    monkeypatch.setattr(encoder_plots, "MAX_POINTS", 20)
    assert "20 of 58" in texts_of(tsne_by_aisle(before, after, aisles, seed=0))


def test_every_drawn_aisle_looks_different() -> None:
    assert len({_look(number) for number in range(MAX_AISLES)}) == MAX_AISLES


def test_a_name_stands_in_the_denser_of_two_clusters() -> None:
    dense = np.random.default_rng(0).normal(size=(30, 2)) * 0.1
    loose = np.random.default_rng(1).normal(size=(30, 2)) + 10
    assert np.abs(_densest(np.concatenate([dense, loose]))).max() < 1
    np.testing.assert_array_equal(_densest(np.array([[3.0, 4.0]])), [3, 4])


def test_an_absent_grade_leaves_its_curve_out() -> None:
    before, after, labels = small_world()
    labels.grade_N[labels.grade_N == 2] = 1
    found = texts_of(cosines_by_grade(before, after, labels))
    assert "high (0 pairs)" in found
    assert "AUC" not in found


def test_matrices_show_percent_of_each_true_class_and_recall_is_drawn_for_each() -> None:
    before, after, labels = small_world()
    found = aisle_probe(
        before, after, labels, config=ProbeConfig(seeds=(0,), learning_rate=0.01, patience=20)
    )
    assert found.after.recall_C.tolist() == [1, 1, 1]
    texts = texts_of(confusion_matrices(found, titles=("old", "new")))
    assert "new: macro F1 1.000" in texts
    assert "100" in texts
    assert "aisle 0 (33)" in texts
    recall = recall_by_class(found, titles=("old", "new"))
    assert "aisle 2 (20)" in texts_of(recall)
    with Image.open(io.BytesIO(picture_bytes(recall, kind="png"))) as picture:
        assert picture.size[0] > picture.size[1]
