"""What frozen vectors know: the aisle of a product, the relevance of a product to a query (paper section 5).

Small classifiers on top of vectors that do not change, the encoder before our training against the encoder
after it. The paper's two probes are `aisle` (hidden layer, dropout, linear) and `relevance` (the vectors of
product and query side by side, dropout, linear). A linear layer on two vectors side by side adds up what each
says alone and cannot compare them; so the same probe is reported with |p - q| and p * q beside p and q, too.
And since pairs of one query may stand on both sides of the paper's split, both are reported over unseen
queries, too.

Give pairs of queries that no encoder was trained on (`ProbeLabels.restricted_to`): grades that shaped the
vectors would flatter the encoder after training.

Shapes: P products, Q queries, N rows (products or graded pairs), D embedding width, F features, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.metrics import confusion_matrix

from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.probe_report import (
    PartRows,
    ProbeComparison,
    ProbeReport,
    ProbeResult,
    VectorSummary,
    grade_auc,
)
from embeddings.evaluation.probe_training import (
    FloatArray,
    IntArray,
    ProbeConfig,
    ProbeSplit,
    fit_and_predict,
    split_rows,
)
from embeddings.relevance.grades import GRADES
from features.progress import Progress, silent

BoolArray = npt.NDArray[np.bool_]
Features = Literal["concat", "interactions"]
FEATURES: tuple[Features, ...] = ("concat", "interactions")

#: The paper drops half of the irrelevant pairs, "easy negatives", from training and test rows alike.
IRRELEVANT_DROPPED = 0.5
#: A class needs one test row at a share of 20 %; rarer ones are left out and counted.
MIN_CLASS_ROWS = 5
#: Pairs whose vectors are held at a time for their cosines.
CHUNK_PAIRS = 65_536


class ProbeImpossibleError(ValueError):
    """The labels do not allow a probe; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class VectorPair:
    """The vectors of one encoder: row p is product p and row q is query q of the `ProbeLabels`.

    All zeros = the encoder had nothing to say; such rows take part like any other, and are counted.
    """

    name: str
    products_PD: FloatArray
    queries_QD: FloatArray

    def __post_init__(self) -> None:
        for kind, vectors in (("product", self.products_PD), ("query", self.queries_QD)):
            if vectors.ndim != 2 or not np.isfinite(vectors).all():
                found = "NaN or infinity" if vectors.ndim == 2 else f"shape {vectors.shape}"
                raise ValueError(
                    f"the {kind} vectors of {self.name} must be finite and of shape [rows, width], got "
                    f"{found}; encode them again"
                )
        if self.products_PD.shape[1] != self.queries_QD.shape[1]:
            raise ValueError(
                f"products and queries of {self.name} must share one space, got widths "
                f"{self.products_PD.shape[1]} and {self.queries_QD.shape[1]}; give tables of one encoder"
            )

    @classmethod
    def from_tables(
        cls,
        name: str,
        products: EmbeddingTable,
        queries: EmbeddingTable,
        *,
        product_ids: pa.Array,
        query_texts: pa.Array,
    ) -> Self:
        """Vectors of these products and queries in this order; ids that a table lacks get zeros."""
        return cls(
            name=name,
            products_PD=np.asarray(products.vectors_ND[products.rows_of(product_ids)], np.float32),
            queries_QD=np.asarray(queries.vectors_ND[queries.rows_of(query_texts)], np.float32),
        )


@dataclass(frozen=True, eq=False)
class ProbeLabels:
    """What the probes shall find: the aisle of each product ("" or None = unknown), the grades of pairs.

    Products or queries of one group (variants of one thing) never stand on two sides of a split that is over
    products or queries; without groups each is its own.
    """

    aisles: Sequence[str | None]
    product_N: IntArray
    query_N: IntArray
    grade_N: IntArray
    product_group_P: IntArray | None = None
    query_group_Q: IntArray | None = None

    def restricted_to(self, queries_Q: BoolArray) -> Self:
        """Only the pairs of these queries; all aisles."""
        keep_N = queries_Q[self.query_N]
        return replace(
            self,
            product_N=self.product_N[keep_N],
            query_N=self.query_N[keep_N],
            grade_N=self.grade_N[keep_N],
        )


def run_probes(
    before: VectorPair,
    after: VectorPair,
    labels: ProbeLabels,
    *,
    config: ProbeConfig | None = None,
    progress: Progress = silent,
) -> ProbeReport:
    """Both probes on both encoders, each seed on the same rows, split and order of batches for both.

    Two equal encoders give equal results and differences of exactly 0. A probe that the labels do not allow
    is left out, with the reason.

    Raises:
        ProbeImpossibleError: they allow none.
        ValueError: vectors and labels do not fit together, or a grade is not 0, 1 or 2.
    """
    config = config or ProbeConfig()
    for vectors in (before, after):
        _check(vectors, labels)
    jobs: dict[str, Callable[..., ProbeComparison]] = {"aisle": partial(aisle_probe, before, after, labels)}
    for unseen_queries in (False, True):
        for features in FEATURES:
            jobs[relevance_name(features, unseen_queries=unseen_queries)] = partial(
                relevance_probe, before, after, labels, features=features, unseen_queries=unseen_queries
            )
    probes, left_out = {}, {}
    for name, job in jobs.items():
        try:
            probes[name] = job(config=config, progress=progress)
        except ProbeImpossibleError as error:
            left_out[name] = str(error)
    if not probes:
        raise ProbeImpossibleError(f"no probe is possible: {'; '.join(dict.fromkeys(left_out.values()))}")
    return ProbeReport(
        before=_summary(before, labels),
        after=_summary(after, labels),
        probes=probes,
        left_out=left_out,
        config=config.model_dump(mode="json"),
    )


def aisle_probe(
    before: VectorPair,
    after: VectorPair,
    labels: ProbeLabels,
    *,
    config: ProbeConfig,
    progress: Progress = silent,
) -> ProbeComparison:
    """The aisle from the product vector: linear, ReLU, dropout, linear; stratified 80-20 over products."""
    aisle_P = np.array([aisle or "" for aisle in labels.aisles], dtype=np.str_)
    product_N = np.flatnonzero(aisle_P != "")
    names, class_N = np.unique(aisle_P[product_N], return_inverse=True)
    group_P = labels.product_group_P

    def draw(kept_N: IntArray, rng: np.random.Generator) -> ProbeSplit:
        group_N = None if group_P is None else group_P[product_N[kept_N]]
        return _taken(kept_N, split_rows(class_N[kept_N], group_N=group_N, rng=rng))

    def products_of(vectors: VectorPair) -> Callable[[IntArray], FloatArray]:
        return lambda rows_M: vectors.products_PD[product_N[rows_M]]

    return _compare(
        "aisle",
        [products_of(before), products_of(after)],
        names=names.tolist(),
        class_N=class_N,
        draw=draw,
        hidden_dim=config.hidden_dim,
        config=config,
        progress=progress,
    )


def relevance_probe(
    before: VectorPair,
    after: VectorPair,
    labels: ProbeLabels,
    *,
    features: Features = "concat",
    unseen_queries: bool = False,
    config: ProbeConfig,
    progress: Progress = silent,
) -> ProbeComparison:
    """The grade from the vectors of product and query: dropout, linear; half of the irrelevant dropped.

    80-20 over distinct pairs, stratified by grade as far as it goes; with `unseen_queries` over queries.
    """
    pair_N = labels.product_N.astype(np.int64) * len(before.queries_QD) + labels.query_N
    group_Q = labels.query_group_Q
    query_N = labels.query_N if group_Q is None else group_Q[labels.query_N]
    group_N = query_N if unseen_queries else pair_N

    def draw(kept_N: IntArray, rng: np.random.Generator) -> ProbeSplit:
        easy_N = (labels.grade_N[kept_N] == 0) & (rng.random(len(kept_N)) < IRRELEVANT_DROPPED)
        kept_N = np.sort(rng.permutation(kept_N[~easy_N])[: config.max_pairs])
        # A query has pairs of all grades: split over queries, it belongs to no class.
        class_N = np.zeros(len(kept_N), np.int64) if unseen_queries else labels.grade_N[kept_N]
        return _taken(kept_N, split_rows(class_N, group_N=group_N[kept_N], rng=rng))

    def pairs_of(vectors: VectorPair) -> Callable[[IntArray], FloatArray]:
        return lambda rows_M: pair_features(
            vectors.products_PD[labels.product_N[rows_M]],
            vectors.queries_QD[labels.query_N[rows_M]],
            features=features,
        )

    return _compare(
        relevance_name(features, unseen_queries=unseen_queries),
        [pairs_of(before), pairs_of(after)],
        names=GRADES,
        class_N=labels.grade_N,
        draw=draw,
        hidden_dim=None,
        config=config,
        progress=progress,
    )


def relevance_name(features: Features, *, unseen_queries: bool) -> str:
    """What the report calls a relevance probe; the paper's is plain "relevance"."""
    return f"relevance{'_interactions' * (features == 'interactions')}{'_unseen_queries' * unseen_queries}"


def pair_features(product_ND: FloatArray, query_ND: FloatArray, *, features: Features) -> FloatArray:
    """[p, q] as the paper has it, or [p, q, |p - q|, p * q]; for unit vectors p * q adds up to the cosine."""
    parts = [product_ND, query_ND]
    if features == "interactions":
        parts += [np.abs(product_ND - query_ND), product_ND * query_ND]
    return np.concatenate(parts, axis=1)


def cosines(vectors: VectorPair, product_N: IntArray, query_N: IntArray) -> FloatArray:
    """Cosine of each pair; 0 where a vector is all zeros."""
    cosine_N = np.zeros(len(product_N), np.float32)
    for start in range(0, len(product_N), CHUNK_PAIRS):
        chunk = slice(start, start + CHUNK_PAIRS)
        product_MD, query_MD = vectors.products_PD[product_N[chunk]], vectors.queries_QD[query_N[chunk]]
        length_M = np.linalg.norm(product_MD, axis=1) * np.linalg.norm(query_MD, axis=1)
        dot_M = np.einsum("md,md->m", product_MD, query_MD)
        np.divide(dot_M, length_M, out=cosine_N[chunk], where=length_M > 0)
    return cosine_N


def _compare(
    stage: str,
    features_of: Sequence[Callable[[IntArray], FloatArray]],
    *,
    names: Sequence[str],
    class_N: IntArray,
    draw: Callable[[IntArray, np.random.Generator], ProbeSplit],
    hidden_dim: int | None,
    config: ProbeConfig,
    progress: Progress,
) -> ProbeComparison:
    """Train and measure one probe on the features of both encoders, seed by seed on the same split."""
    rows_C = np.bincount(class_N, minlength=len(names))
    usable_C = rows_C >= MIN_CLASS_ROWS
    if usable_C.sum() < 2:
        raise ProbeImpossibleError(
            f"the {stage} probe needs two classes of at least {MIN_CLASS_ROWS} rows, got "
            f"{dict(zip(names, rows_C.tolist(), strict=True))}; give more labels or leave this probe out"
        )
    kept_N = np.flatnonzero(usable_C[class_N])
    new_class_N = (np.cumsum(usable_C) - 1)[class_N]
    classes = int(usable_C.sum())
    confusions: list[list[npt.NDArray[np.int64]]] = [[] for _ in features_of]
    epochs: list[list[int]] = [[] for _ in features_of]
    part_rows: list[tuple[int, int, int]] = []
    for done, seed in enumerate(config.seeds):
        split = draw(kept_N, np.random.default_rng(seed))
        parts = (split.train_M, split.validation_M, split.test_M)
        part_rows.append((len(parts[0]), len(parts[1]), len(parts[2])))
        if not all(part_rows[-1]):
            raise ProbeImpossibleError(
                f"the {stage} probe is left with {part_rows[-1]} training, validation and test rows by seed "
                f"{seed}; it needs some of each: give more labels or leave this probe out"
            )
        for side, features in enumerate(features_of):
            progress(stage, done * len(features_of) + side, len(config.seeds) * len(features_of))
            fitted = fit_and_predict(
                (features(split.train_M), new_class_N[split.train_M]),
                (features(split.validation_M), new_class_N[split.validation_M]),
                features(split.test_M),
                classes=classes,
                hidden_dim=hidden_dim,
                config=config,
                seed=seed,
            )
            test_class_M = new_class_N[split.test_M]
            confusions[side].append(confusion_matrix(test_class_M, fitted.predicted_M, labels=range(classes)))
            epochs[side].append(fitted.epoch)
    progress(stage, len(config.seeds) * len(features_of), len(config.seeds) * len(features_of))
    chosen = tuple(name for name, usable in zip(names, usable_C, strict=True) if usable)
    before, after = (
        ProbeResult.of(np.stack(found), classes=chosen, epochs=kept)
        for found, kept in zip(confusions, epochs, strict=True)
    )
    train, validation, test = np.mean(part_rows, axis=0).tolist()
    return ProbeComparison.of(
        before,
        after,
        classes=chosen,
        support=tuple(rows_C[usable_C].tolist()),
        left_out={
            name: int(rows) for name, rows, usable in zip(names, rows_C, usable_C, strict=True) if not usable
        },
        rows=PartRows(train=train, validation=validation, test=test),
    )


def _taken(rows_N: IntArray, split: ProbeSplit) -> ProbeSplit:
    """A split of positions in `rows_N` as a split of these rows."""
    return ProbeSplit(
        train_M=rows_N[split.train_M], validation_M=rows_N[split.validation_M], test_M=rows_N[split.test_M]
    )


def _summary(vectors: VectorPair, labels: ProbeLabels) -> VectorSummary:
    cosine_N = cosines(vectors, labels.product_N, labels.query_N)
    zero_P = np.abs(vectors.products_PD).max(axis=1, initial=0) == 0
    zero_Q = np.abs(vectors.queries_QD).max(axis=1, initial=0) == 0
    used_P = np.array([bool(aisle) for aisle in labels.aisles], bool)
    used_P[labels.product_N] = True
    mean_cosine: dict[str, float | None] = {}
    for grade, name in enumerate(GRADES):
        chosen_M = cosine_N[labels.grade_N == grade]
        mean_cosine[name] = float(chosen_M.mean()) if len(chosen_M) else None
    return VectorSummary(
        name=vectors.name,
        dim=vectors.products_PD.shape[1],
        zero_products=int((zero_P & used_P).sum()),
        zero_queries=int(zero_Q[np.unique(labels.query_N)].sum()),
        mean_cosine=mean_cosine,
        auc_high_vs_irrelevant=grade_auc(cosine_N, labels.grade_N, high=2, low=0),
        auc_high_vs_moderate=grade_auc(cosine_N, labels.grade_N, high=2, low=1),
        auc_moderate_vs_irrelevant=grade_auc(cosine_N, labels.grade_N, high=1, low=0),
    )


def _check(vectors: VectorPair, labels: ProbeLabels) -> None:
    """Refuse labels that do not fit the vectors."""
    if len(labels.aisles) != len(vectors.products_PD):
        raise ValueError(
            f"there must be one aisle (or None) for each product vector of {vectors.name}, got "
            f"{len(labels.aisles):,} for {len(vectors.products_PD):,}; bring both into one order"
        )
    if not len(labels.product_N) == len(labels.query_N) == len(labels.grade_N):
        raise ValueError(
            "each graded pair must have a product, a query and a grade, got "
            f"{len(labels.product_N):,}, {len(labels.query_N):,} and {len(labels.grade_N):,}"
        )
    for kind, row_N, rows in (
        ("product", labels.product_N, len(vectors.products_PD)),
        ("query", labels.query_N, len(vectors.queries_QD)),
    ):
        if len(row_N) and not 0 <= row_N.min() <= row_N.max() < rows:
            raise ValueError(
                f"{kind} rows of the graded pairs must lie in 0 ... {rows - 1}, the {kind} vectors of "
                f"{vectors.name}, got {row_N.min()} ... {row_N.max()}"
            )
    if not np.isin(labels.grade_N, (0, 1, 2)).all():
        raise ValueError(f"grades must be 0, 1 or 2, got {np.unique(labels.grade_N).tolist()[:10]}")
