"""How well frozen image vectors tell Grocery Store photos apart, and find the text that belongs to a photo.

Two questions, both on the published test photos. *Classification*: a linear probe on the vectors, trained on
the train photos, names the fine and the coarse class. *Retrieval*: the texts of all fine classes are ranked
by their cosine to the photo; no probe, no training on these classes.

Vectors must come from images alone: a photo's title names its class. Intervals draw photos again one by one.
Photos of one shelf resemble each other, so they are rather too narrow.

Shapes: N photos, T test photos, C fine classes, D embedding width, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from embeddings.catalog.inputs import open_input_table
from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.linear_probe import GroupedHits, group_resamples, linear_probe, unit_vectors
from experiments.datasets.grocery_store import ICONIC
from experiments.statistics.cells import FlatRow, interval_of, markdown_table, with_limits
from experiments.statistics.intervals import Interval
from features.artifacts import ResultFile
from features.progress import Progress, silent

FloatArray = npt.NDArray[np.float32]

MAJORITY, THUMBNAIL, CHANCE = "majority", "thumbnail", "chance"
#: A floor that knows colours and where they are, and nothing else: pictures of 8 x 8 pixels.
THUMBNAIL_SIDE = 8
RETRIEVED = (1, 5)


@dataclass(frozen=True, eq=False)
class Photos:
    """All photos of the three splits, and the iconic product that stands for the text of each class."""

    ids: pa.Array
    images: list[str]
    split_N: npt.NDArray[np.str_]
    class_N: npt.NDArray[np.int64]
    coarse_N: npt.NDArray[np.int64]
    text_ids: pa.Array
    text_class_C: npt.NDArray[np.int64]
    text_coarse_C: npt.NDArray[np.int64]


class ClassificationRow(FlatRow):
    """A probe's figures on the test photos."""

    encoder_id: str
    photos_without_vector: int
    accuracy: Interval
    macro_f1: Interval
    coarse_accuracy: Interval
    coarse_macro_f1: Interval


class RetrievalRow(FlatRow):
    """The texts of all classes ranked for each test photo; a tie counts against the right one."""

    recall_at_1: Interval
    recall_at_5: Interval
    mrr: Interval
    #: How often the best text is one of the right coarse class.
    coarse_recall_at_1: Interval


class GroceryStoreResults(ResultFile):
    """`results.json`: both tables; retrieval has the rows for which there were texts, and chance."""

    simulated: bool = False
    classification: dict[str, ClassificationRow]
    retrieval: dict[str, RetrievalRow]
    photos: dict[str, int]
    classes: int
    coarse_classes: int
    provenance: dict[str, str] | None = None


def evaluate_grocery_store(
    data: Path,
    images: Mapping[str, EmbeddingTable],
    texts: Mapping[str, EmbeddingTable],
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> GroceryStoreResults:
    """Probe each table of `images`, and rank its photos' texts where `texts` has a table of the same name.

    Both are tables of products: `images` of the photos, encoded by their images alone; `texts` of the iconic
    products, encoded by their texts alone. The floors (the most frequent class, thumbnails, chance) come
    without being asked for.

    Raises:
        ValueError: the products of `data` were not written by the import, or `texts` has a name that
            `images` lacks, another width, or no vector for a class.
    """
    if unknown := sorted(set(texts) - set(images)):
        raise ValueError(f"texts without images: {', '.join(unknown)}; give both tables under one name")
    photos = read_photos(data)
    test_N = photos.split_N == "test"
    weights_RT = group_resamples(int(test_N.sum()), resamples, np.random.default_rng(seed))
    weights_RT = np.vstack([np.ones((1, weights_RT.shape[1])), weights_RT])  # the estimate itself comes first
    classification = {MAJORITY: _majority(photos, weights_RT)}
    retrieval = {CHANCE: _chance(photos)}
    for done, name in enumerate((THUMBNAIL, *images)):
        progress(f"probing {name}", done, 1 + len(images))
        if name == THUMBNAIL:
            vectors_ND, encoder_id = (
                thumbnails(data, photos.images),
                f"{THUMBNAIL_SIDE} x {THUMBNAIL_SIDE} pixels",
            )
        else:
            vectors_ND, encoder_id = unit_vectors(images[name], photos.ids), images[name].manifest.encoder_id
        classification[name] = _classify(photos, vectors_ND, encoder_id, weights_RT)
        if name in texts:
            retrieval[name] = _retrieve(photos, vectors_ND[test_N], texts[name], weights_RT)
    return GroceryStoreResults(
        classification=classification,
        retrieval=retrieval,
        photos={
            str(split): int(count)
            for split, count in zip(*np.unique(photos.split_N, return_counts=True), strict=True)
        },
        classes=len(photos.text_class_C),
        coarse_classes=len(np.unique(photos.text_coarse_C)),
    )


def read_photos(data: Path) -> Photos:
    """The photos that `dashclip import grocery-store` wrote to `data`, in the order of the table.

    Raises:
        ValueError: there are no such products, no train or no test photo, or not one iconic product a class.
    """
    products = open_input_table(data, "products")
    wanted = ("product_id", "image", "split", "class_id", "coarse_class_id")
    if products is None or (missing := [name for name in wanted if name not in products.schema.names]):
        lack = "no products" if products is None else f"products without {', '.join(missing)}"
        raise ValueError(f"{data} holds {lack}; `dashclip import grocery-store` writes what is needed")
    table = products.to_table(columns=list(wanted)).combine_chunks()
    iconic = pc.equal(table.column("split"), ICONIC)
    texts, photos = table.filter(iconic), table.filter(pc.invert(iconic))
    found = Photos(
        ids=photos.column("product_id").combine_chunks(),
        images=photos.column("image").to_pylist(),
        split_N=np.array(photos.column("split").to_pylist(), np.str_),
        class_N=photos.column("class_id").to_numpy().astype(np.int64),
        coarse_N=photos.column("coarse_class_id").to_numpy().astype(np.int64),
        text_ids=texts.column("product_id").combine_chunks(),
        text_class_C=texts.column("class_id").to_numpy().astype(np.int64),
        text_coarse_C=texts.column("coarse_class_id").to_numpy().astype(np.int64),
    )
    if not {"train", "test"} <= set(found.split_N.tolist()):
        raise ValueError(f"{data} must hold train and test photos; import the whole data set again")
    if len(np.unique(found.text_class_C)) != len(found.text_class_C) or set(found.class_N.tolist()) - set(
        found.text_class_C.tolist()
    ):
        raise ValueError(f"{data} must hold one iconic product for each class; import the data set again")
    return found


def thumbnails(data: Path, images: list[str]) -> FloatArray:
    """Pixels [N, 3 x 8 x 8] in [0, 1] of pictures shrunk by averaging. A white picture is all ones."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    pixels_ND = np.empty((len(images), 3 * THUMBNAIL_SIDE**2), np.float32)
    for row, name in enumerate(images):
        with Image.open(data / name) as picture:
            pixels_ND[row] = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX)).ravel()
    return pixels_ND / np.float32(255)


def to_markdown(results: GroceryStoreResults) -> str:
    """A heading and the two tables."""
    classification = {
        "accuracy": f"Accuracy, {results.classes} classes",
        "macro_f1": "Macro F1",
        "coarse_accuracy": f"Accuracy, {results.coarse_classes} coarse",
        "coarse_macro_f1": "Macro F1, coarse",
    }
    retrieval = {
        "recall_at_1": "Recall at 1",
        "recall_at_5": "Recall at 5",
        "mrr": "MRR",
        "coarse_recall_at_1": "Right coarse class at 1",
    }
    lines = [
        "# Grocery Store: frozen vectors on unseen photos",
        "",
        f"**Real data.** {results.photos['test']:,} test photos of {results.classes} classes "
        f"({results.coarse_classes} coarse); linear probes trained on {results.photos['train']:,} photos.",
        "",
        *_table(results.classification, classification),
        "",
        f"Which of the {results.classes} texts (title and description) belongs to the photo, by cosine:",
        "",
        *_table(results.retrieval, retrieval),
        "",
        "In brackets 95 % intervals from resamples of test photos.",
        "",
    ]
    return "\n".join(lines)


def _table(rows: Mapping[str, FlatRow], titles: Mapping[str, str]) -> list[str]:
    cells = ([name, *(with_limits(getattr(row, figure)) for figure in titles)] for name, row in rows.items())
    return markdown_table(["Row", *titles.values()], cells)


def _classify(
    photos: Photos, vectors_ND: FloatArray, encoder_id: str, weights_RT: npt.NDArray[np.float64]
) -> ClassificationRow:
    train_N, validation_N = photos.split_N == "train", photos.split_N == "validation"
    fine, coarse = (
        linear_probe(vectors_ND, class_N, train_N=train_N, validation_N=validation_N).predicted_N
        for class_N in (photos.class_N, photos.coarse_N)
    )
    missing = int(np.count_nonzero(~vectors_ND[photos.split_N == "test"].any(axis=1)))
    return _row(photos, fine, coarse, encoder_id, missing, weights_RT)


def _majority(photos: Photos, weights_RT: npt.NDArray[np.float64]) -> ClassificationRow:
    train_N = photos.split_N == "train"
    fine, coarse = (
        np.full(len(class_N), np.bincount(class_N[train_N]).argmax())
        for class_N in (photos.class_N, photos.coarse_N)
    )
    return _row(photos, fine, coarse, "the most frequent class of the train photos", 0, weights_RT)


def _row(
    photos: Photos,
    fine_N: npt.NDArray[np.int64],
    coarse_N: npt.NDArray[np.int64],
    encoder_id: str,
    missing: int,
    weights_RT: npt.NDArray[np.float64],
) -> ClassificationRow:
    test_N = photos.split_N == "test"
    each_T = np.arange(int(test_N.sum()))
    fine = GroupedHits(photos.class_N[test_N], fine_N[test_N], each_T)
    coarse = GroupedHits(photos.coarse_N[test_N], coarse_N[test_N], each_T)
    return ClassificationRow(
        encoder_id=encoder_id,
        accuracy=interval_of(fine.accuracy(weights_RT)),
        macro_f1=interval_of(fine.macro_f1(weights_RT)),
        coarse_accuracy=interval_of(coarse.accuracy(weights_RT)),
        coarse_macro_f1=interval_of(coarse.macro_f1(weights_RT)),
        photos_without_vector=missing,
    )


def _retrieve(
    photos: Photos, image_TD: FloatArray, texts: EmbeddingTable, weights_RT: npt.NDArray[np.float64]
) -> RetrievalRow:
    if texts.dim != image_TD.shape[1]:
        raise ValueError(
            f"images and texts must lie in one space, but the images have width {image_TD.shape[1]} and "
            f"{texts.folder} {texts.dim}; give tables of one encoder"
        )
    text_CD = unit_vectors(texts, photos.text_ids)
    if lacking := int(np.count_nonzero(~text_CD.any(axis=1))):
        raise ValueError(
            f"{texts.folder} has no vector for {lacking} of {len(text_CD)} iconic products; encode them by "
            "title and description"
        )
    rank_T, best_C = ranks(image_TD @ text_CD.T, _positions(photos))
    coarse_T = photos.coarse_N[photos.split_N == "test"]
    rows_T = weights_RT.sum(axis=1)

    def mean(values_T: npt.NDArray[Any]) -> Interval:
        return interval_of(weights_RT @ values_T.astype(np.float64) / rows_T)

    return RetrievalRow(
        recall_at_1=mean(rank_T <= RETRIEVED[0]),
        recall_at_5=mean(rank_T <= RETRIEVED[1]),
        mrr=mean(1 / rank_T),
        coarse_recall_at_1=mean(photos.text_coarse_C[best_C] == coarse_T),
    )


def ranks(
    score_TC: npt.NDArray[np.floating], right_T: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rank of the right text, from 1, ties against it, and the position of the best text.

    Equal scores throughout give rank C.
    """
    own_T1 = np.take_along_axis(score_TC, right_T[:, None], axis=1)
    return np.count_nonzero(score_TC >= own_T1, axis=1).astype(np.int64), score_TC.argmax(axis=1)


def _chance(photos: Photos) -> RetrievalRow:
    """What a random order of the texts is expected to reach; the mean of 1 / rank is H_C / C."""
    classes = len(photos.text_class_C)
    coarse_T = photos.coarse_N[photos.split_N == "test"]
    share_of_coarse = np.bincount(photos.text_coarse_C, minlength=int(coarse_T.max()) + 1) / classes

    def exact(value: float) -> Interval:
        return Interval(mean=value, low=None, high=None)

    return RetrievalRow(
        recall_at_1=exact(1 / classes),
        recall_at_5=exact(min(RETRIEVED[1], classes) / classes),
        mrr=exact(float(np.mean(1 / np.arange(1, classes + 1)))),
        coarse_recall_at_1=exact(float(share_of_coarse[coarse_T].mean())),
    )


def _positions(photos: Photos) -> npt.NDArray[np.int64]:
    """Position of each test photo's own text."""
    order_C = np.argsort(photos.text_class_C)
    wanted_T = photos.class_N[photos.split_N == "test"]
    return order_C[np.searchsorted(photos.text_class_C[order_C], wanted_T)].astype(np.int64)
