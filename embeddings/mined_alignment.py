"""Stage 2 in two rounds: on random negatives, then on the hard ones that the first round's encoder confuses.

Beyond the paper. The run folder is that of the second round, with the whole of the first in `round-1/`; each
goes on after a kill. Until the second is trained, the vectors that it was mined with lie in `mining/`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.alignment import AlignConfig
from embeddings.catalog import ProductCatalog
from embeddings.dashclip import DashClipEncoder
from embeddings.distributed import join_ranks
from embeddings.encode import encode_products, encode_queries
from embeddings.grades import Grades
from embeddings.mining import MiningConfig, mine_tuples
from embeddings.relevance import Progress
from embeddings.stages import TRAINING, TUPLES, InputConfig, ShowReport, StageError, StageRun, align
from embeddings.table import is_table
from embeddings.tuple_sampling import TupleConfig
from embeddings.tuple_set import TupleSet

FIRST_ROUND, VECTORS = "round-1", "mining"


def align_with_mining(
    data: Path,
    folder: Path,
    *,
    start: DashClipEncoder,
    config: AlignConfig,
    mining: MiningConfig,
    tuple_config: TupleConfig | None = None,
    sources: Sequence[str] = ("human", "llm"),
    inputs: InputConfig | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    progress: Progress | None = None,
) -> StageRun:
    """Stage 2 with mined negatives in the second part of the epochs; a finished folder is opened.

    Each round has a warm-up and a decay of its own, and ends with its best weights; the second starts from
    those of the first. Validation tuples are mined as well, among validation queries, so that the best
    weights of the second round are best at what it trains: its losses are higher than those of the first.

    Raises:
        StageError: the folder holds a finished run without mining, or one of other settings or inputs.
        ValueError: there are fewer than two epochs; and what `align` raises.
    """
    first_epochs = mining.first_epochs(config.epochs)
    if (folder / TRAINING).is_file() and not (folder / FIRST_ROUND / TRAINING).is_file():
        raise StageError(
            f"{folder} holds a finished run without mining; delete it or choose another output folder"
        )
    inputs = inputs or InputConfig()

    def one_round(to: Path, begin: DashClipEncoder, epochs: int, mined: MinedTuples | None) -> StageRun:
        return align(
            data,
            to,
            start=begin,
            config=config.model_copy(update={"epochs": epochs}),
            tuple_config=tuple_config,
            tuple_source=mined,
            sources=sources,
            inputs=inputs,
            device=device,
            show=show,
            progress=progress,
        )

    first = one_round(folder / FIRST_ROUND, start, first_epochs, None)
    mined = MinedTuples(
        data=data,
        earlier=first,
        vectors=folder / VECTORS / first.encoder.encoder_id,
        config=mining,
        inputs=inputs,
        seed=config.seed,
        device=device,
        progress=progress,
    )
    second = one_round(folder, first.encoder, config.epochs - first_epochs, mined)
    if join_ranks(device).first:
        shutil.rmtree(folder / VECTORS, ignore_errors=True)
    return second


@dataclass(frozen=True, eq=False)
class MinedTuples:
    """The tuples of an earlier round with hard negatives mined by its encoder: a `TupleSource`."""

    data: Path
    earlier: StageRun
    #: Where the earlier encoder's vectors are kept.
    vectors: Path
    config: MiningConfig
    inputs: InputConfig
    seed: int
    device: str
    progress: Progress | None

    @property
    def settings(self) -> dict[str, Any]:
        """How they are mined; the earlier encoder is what the round starts from, and recorded as such."""
        return {"mining": self.config.model_dump(mode="json")}

    def write(
        self,
        out: Path,
        grades: Grades,
        aisles: Sequence[str | None],
        *,
        product_mask: npt.NDArray[np.bool_],
        query_mask: npt.NDArray[np.bool_],
    ) -> TupleSet:
        """Mine into the earlier tuples of the same name. Vectors are computed by the first call alone."""
        catalog = ProductCatalog.open(
            self.data, modalities=self.inputs.modalities, text_columns=self.inputs.text_columns
        )
        products, queries = self.vectors / "products", self.vectors / "queries"
        product_table = encode_products(
            self.earlier.encoder,
            catalog,
            products,
            only_new_from=products if is_table(products) else None,
            device=self.device,
            progress=self.progress,
        ).table
        query_table = encode_queries(
            self.earlier.encoder,
            grades.queries,
            queries,
            only_new_from=queries if is_table(queries) else None,
            device=self.device,
            progress=self.progress,
        ).table
        return mine_tuples(
            TupleSet.open(self.earlier.folder / TUPLES / out.name, product_ids=catalog.ids),
            grades,
            aisles,
            product_vectors_PD=product_table.vectors_ND[1:],  # row 0 stands for a missing product
            query_vectors_QD=query_table.vectors_ND[1:],
            config=self.config,
            seed=self.seed,
            out=out,
            product_mask=product_mask,
            query_mask=query_mask,
            progress=self.progress,
        )
