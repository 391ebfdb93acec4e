"""Which image belongs to a title: what can be measured of an encoder without queries and grades.

Titles of products that no stage was trained on, nor on a lookalike, against the images of the whole
catalogue.

Shapes: P products, I products with an image, Q titles, K places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embeddings.catalog.holdout import agreed_holdout
from embeddings.catalog.products import Modality, ProductCatalog
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.evaluation.judgements import HIGHLY_RELEVANT, FloatArray, IntArray, Judgements
from embeddings.evaluation.search import pair_scores, search
from embeddings.stages.product_parts import has_image_and_title, unseen_products
from embeddings.stages.run_folder import InputConfig
from experiments.datasets.encoder_runs import write_table
from experiments.encoders.retrieval_rows import Missing, RandomRow, TableRow
from experiments.encoders.table1 import Table1, evaluate_rows
from features.progress import Progress, silent

TITLE = "Title to image"


@dataclass(frozen=True, eq=False)
class TitleToImageRow:
    """Images nearest to titles, both made by one encoder; a query is the id of a product."""

    titles: EmbeddingTable
    images: EmbeddingTable

    def ranking(self, judgements: Judgements, k: int) -> IntArray:
        return search(*self._vectors(judgements), k)

    def pair_scores(self, judgements: Judgements) -> FloatArray:
        return pair_scores(*self._vectors(judgements), judgements)

    def missing(self, judgements: Judgements) -> Missing:
        images_ID, titles_QD = self._vectors(judgements)
        return Missing(
            products=int((~images_ID.any(axis=1)).sum()), queries=int((~titles_QD.any(axis=1)).sum())
        )

    def _vectors(self, judgements: Judgements) -> tuple[FloatArray, FloatArray]:
        return (
            self.images.vectors_ND[self.images.rows_of(judgements.products)],
            self.titles.vectors_ND[self.titles.rows_of(judgements.queries)],
        )


def measure_title_to_image(
    data: Path,
    encoders: Mapping[str, DashClipEncoder],
    out: Path,
    *,
    inputs: InputConfig,
    k: int = 10,
    candidate: str = "dashclip",
    device: str = "cpu",
    progress: Progress = silent,
) -> Table1:
    """Retrieval of images by titles, for each encoder beside a random order.

    The vectors of titles alone and of images alone go to `out`/NAME/. An image of a lookalike is right, too.

    Raises:
        ValueError: no product that was kept from training has an image and a title, or an encoder was
            trained with another hold-out than `inputs` have or than another one.
    """
    agreed_holdout({name: encoder.holdout for name, encoder in encoders.items()}, inputs.holdout)
    catalog = ProductCatalog.open(data, text_columns=inputs.text_columns)
    both_P = has_image_and_title(catalog)
    asked = np.flatnonzero(both_P & unseen_products(catalog, inputs.holdout))
    if not len(asked):
        raise ValueError(
            "title-to-image retrieval needs products with an image and a title that no stage was trained on, "
            f"nor on a lookalike; of {len(catalog):,} products {int(both_P.sum()):,} have both, and none of "
            "those is held out"
        )
    shown = np.flatnonzero([path is not None for path in catalog.image_paths])
    query_J, product_J = _pairs_of_equals(catalog.group_P[asked], catalog.group_P[shown])
    judgements = Judgements.from_pairs(
        queries=catalog.ids.take(pa.array(asked)),
        products=catalog.ids.take(pa.array(shown)),
        query_J=query_J,
        product_J=product_J,
        grade_J=np.full(len(query_J), HIGHLY_RELEVANT),
        complete=True,
    )
    rows: dict[str, TableRow] = {"random": RandomRow()}
    parts: tuple[tuple[str, Modality], ...] = (("titles", "text"), ("images", "image"))
    for name, encoder in encoders.items():
        titles, images = (
            write_table(
                encoder,
                data,
                out / name / part,
                modalities=(modality,),
                text_columns=inputs.text_columns,
                device=device,
                progress=progress,
            )
            for part, modality in parts
        )
        rows[name] = TitleToImageRow(titles, images)
    return evaluate_rows(
        rows,
        judgements,
        simulated=(data / "truth").is_dir(),
        title=TITLE,
        description="titles of products that no stage was trained on, the images of all products",
        k=k,
        candidate=candidate if candidate in encoders else next(iter(encoders), candidate),
        progress=progress,
    )


def _pairs_of_equals(value_Q: IntArray, value_I: IntArray) -> tuple[IntArray, IntArray]:
    """All (q, i) with value_Q[q] == value_I[i], by q, then i; memory grows with the pairs alone."""
    order_I = np.argsort(value_I, kind="stable")
    sorted_I = value_I[order_I]
    first_Q = np.searchsorted(sorted_I, value_Q, side="left")
    count_Q = np.searchsorted(sorted_I, value_Q, side="right") - first_Q
    query_J = np.repeat(np.arange(len(value_Q)), count_Q)
    place_J = np.arange(len(query_J)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
    return query_J, order_I[first_Q[query_J] + place_J]
