"""What stage 2 learns from: grades and products of a data folder, their hold-out, and the tuples of them.

Shapes: Q queries, P products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from embeddings.catalog.holdout import TRAIN, VALIDATION, HoldoutConfig, query_groups, roles_of_groups
from embeddings.catalog.products import ProductCatalog
from embeddings.relevance.build_tuples import (
    Grades,
    TupleConfig,
    TupleSet,
    build_tuples,
    draw_for_products,
    read_grades,
)
from embeddings.relevance.sampling import NegativeCounts
from embeddings.stages.product_parts import ProductParts
from embeddings.stages.run_folder import TUPLES, InputConfig, StageError
from embeddings.stages.stage2 import Tuples
from embeddings.training.ranks import Ranks, barrier
from features.inputs.tables import table_files
from features.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class GradedInputs:
    """What stage 2 learns from, read once: of many products and grades that takes minutes."""

    grades: Grades
    #: With images and titles, whatever the stage looks at.
    products: ProductCatalog
    parts: ProductParts
    config: TupleConfig
    holdout: HoldoutConfig
    seed: int

    @classmethod
    def read(
        cls, data: Path, *, config: TupleConfig, sources: Sequence[str], inputs: InputConfig, seed: int
    ) -> Self:
        """
        Raises:
            StageError: there are no grades.
            InputError, CatalogError, RelevanceError: the tables cannot be read.
        """
        if not table_files(data, "relevance"):
            raise StageError(
                f"stage 2 needs grades of query and product, and {data} has no relevance table; without "
                "grades training ends after stage 1 (`dashclip encode pretrain`), and `dashclip encode run` "
                "makes vectors with its encoder"
            )
        grades = read_grades(data, sources=tuple(sources), draw_seed=seed if config.draw_grades else None)
        products = ProductCatalog.open(data, text_columns=inputs.text_columns)
        parts = ProductParts.of(products, inputs.holdout)
        return cls(grades, products, parts, config, inputs.holdout, seed)

    def roles(self, group_Q: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
        """Of each query: those of one group, which an encoder cannot tell apart, have one role."""
        return roles_of_groups(self.grades.query_roles(self.holdout), group_Q)

    def check(self, folder: Path, *, ranks: Ranks) -> None:
        """Look whether there is enough for stage 2, as far as spelling tells queries apart.

        Raises:
            RelevanceError, ValueError: too few tuples can be made.
        """
        group_Q = query_groups(self.grades.queries)
        for options, fewest in zip(self._sets(group_Q).values(), (2, 1), strict=True):
            drawn = draw_for_products(**options, counts=NegativeCounts())
            if sum(len(product.rows) for product in islice(drawn, fewest)) < fewest:
                self.tuples(folder, group_Q, ranks=ranks)  # which says what there is too little of
                return

    def tuples(
        self, folder: Path, group_Q: npt.NDArray[np.int64], *, ranks: Ranks, progress: Progress = silent
    ) -> Tuples:
        """Those to train on and those to stop early by, in `folder`/tuples.

        Raises:
            RelevanceError, ValueError: too few can be made.
        """
        opened = []
        for name, options in self._sets(group_Q).items():
            target = folder / TUPLES / name
            if ranks.first:
                build_tuples(**options, out_folder=target, progress=progress)
            barrier(ranks)
            opened.append(TupleSet.open(target, product_ids=self.grades.product_ids))
        return Tuples(*opened)

    def _sets(self, group_Q: npt.NDArray[np.int64]) -> dict[str, dict[str, Any]]:
        """What tuples are drawn from: training queries and products, or validation queries."""
        role_Q = self.roles(group_Q)
        parts, aisles = self.parts, self.products.aisles
        return {
            name: {
                "grades": self.grades,
                "aisles": aisles if any(aisles) else None,  # no product has one: a data set without aisles
                "config": self.config,
                "seed": self.seed,
                "product_mask": product_P,
                "query_mask": role_Q == role,
                "group_Q": group_Q,
            }
            for name, role, product_P in (
                ("train", TRAIN, parts.train_P),
                ("validation", VALIDATION, parts.train_P | parts.validation_P),
            )
        }
