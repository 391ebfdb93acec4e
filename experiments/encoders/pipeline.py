"""Encoders end to end: train both stages, encode, measure retrieval (table 1) and probes (section 5)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION, HoldoutConfig, agreed_holdout, product_roles
from embeddings.catalog.inputs import read_distinct_queries
from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable, is_table
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.evaluation.judgements import Judgements
from embeddings.evaluation.probe_report import ProbeReport
from embeddings.evaluation.probes import ProbeLabels, VectorPair, run_probes
from embeddings.evaluation.retrieval import Pool
from embeddings.relevance.grades import read_grades
from embeddings.stages.product_parts import unseen_products
from embeddings.stages.run_folder import InputConfig, ShowReport, StageRun
from embeddings.stages.runs import Start, align, pretrain
from embeddings.tables.encode import Encoded, encode_products, encode_queries
from embeddings.training.run_log import Tracker
from experiments.encoders.config import EncodersConfig
from experiments.encoders.first_encoder import warm_start
from experiments.encoders.retrieval_rows import RandomRow, TableRow, VectorRow, lexical_rows
from experiments.encoders.table1 import Table1, evaluate_rows
from experiments.marketplace.judgements import MarketplaceTruth
from features.inputs.tables import table_files
from features.progress import Progress, silent

#: What an encoder has gone through, by the stage in its id.
_AFTER = {"initial": "before stage 1", "pretrained": "after stage 1", "aligned": "after stage 2"}


def run_pretrain(
    data: Path,
    folder: Path,
    config: EncodersConfig,
    *,
    start: Start | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    tracker: Tracker | None = None,
) -> StageRun:
    """Stage 1, from `start` or from scratch; its products are looked at before any warm-up.

    A `tracker` hears of every stage that trains, warm-ups included.

    Raises:
        ValueError: the config has no stage 1.
    """
    if config.pretrain is None:
        raise ValueError("the config has no [pretrain] section, which stage 1 needs")
    start = warm_start(data, folder / "warmup", config, start, device=device, show=show, tracker=tracker)
    return pretrain(
        data,
        folder,
        start=start,
        config=config.pretrain,
        inputs=config.stage1_inputs,
        device=device,
        show=show,
        tracker=tracker,
    )


def run_align(
    data: Path,
    folder: Path,
    config: EncodersConfig,
    *,
    start: Start | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    tracker: Tracker | None = None,
    progress: Progress = silent,
) -> StageRun:
    """Stage 2, from the encoder of stage 1 or from scratch; its grades are looked at before any warm-up.

    `tracker` as in `run_pretrain`.

    Raises:
        ValueError: the config has no stage 2.
    """
    if config.align is None:
        raise ValueError("the config has no [align] section, which stage 2 needs")
    start = warm_start(data, folder / "warmup", config, start, device=device, show=show, tracker=tracker)
    return align(
        data,
        folder,
        start=start,
        config=config.align,
        tuple_config=config.tuples,
        sources=config.sources,
        inputs=config.inputs,
        device=device,
        show=show,
        tracker=tracker,
        progress=progress,
    )


def encode_tables(
    data: Path,
    folder: Path,
    encoder: DashClipEncoder,
    *,
    inputs: InputConfig,
    queries: pa.Array | None = None,
    only_new_from: Path | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Encoded, Encoded | None]:
    """Tables of all products and of `queries`, all if None; what `only_new_from` has already is copied."""
    catalog = ProductCatalog.open(data, modalities=inputs.modalities, text_columns=inputs.text_columns)
    products_folder, queries_folder = folder / "products", folder / "queries"
    products = encode_products(
        encoder,
        catalog,
        products_folder,
        batch_size=batch_size,
        only_new_from=only_new_from and only_new_from / products_folder.name,
        device=device,
        progress=progress,
    )
    queries = read_distinct_queries(data) if queries is None else queries
    if not len(queries):
        return products, None
    return products, encode_queries(
        encoder,
        queries,
        queries_folder,
        only_new_from=only_new_from and only_new_from / queries_folder.name,
        device=device,
        progress=progress,
    )


def measure_retrieval(
    data: Path,
    tables: Mapping[str, Path],
    *,
    holdout: HoldoutConfig | None = None,
    role: int = TEST,
    baselines: bool = True,
    candidate: str = "dashclip",
    k: int = 10,
    resamples: int = 1000,
    progress: Progress = silent,
) -> Table1:
    """Table 1 on the held-out queries: random, BM25 and the rows of `tables` (folders with both tables).

    What is held out, the tables say themselves (`held_out_of`); `holdout` is for those that do not.
    `role` takes the validation queries instead of the test queries, and without `baselines` the rows of
    `tables` stand alone.

    On the simulated marketplace every product is judged by the simulated truth, and all products compete. On
    other data the graded pairs judge, and the graded products of a query compete.

    Raises:
        ValueError: there are no grades, no query is held out, a table is missing, or its encoder was trained
            with another hold-out than `holdout` or than another one's.
    """
    if not table_files(data, "relevance"):
        raise ValueError(
            f"table 1 needs queries with grades, and {data} has no relevance table. Without, "
            "`dashclip encode evaluate DATA OUT --row NAME=ENCODER` measures which image belongs to a title, "
            "and `dashclip encode probe` what vectors know of aisles"
        )
    holdout = held_out_of(tables, holdout)
    catalog = ProductCatalog.open(data, modalities=("text",))
    grades = read_grades(data)
    role_Q = grades.query_roles(holdout)
    truth = MarketplaceTruth.find(data)
    pool: Pool = "catalogue" if truth else "judged"

    def judged(role: int) -> Judgements:
        if truth is not None:
            return truth.judgements(grades.queries.filter(pa.array(role_Q == role)))
        return grades.judgements().select_queries(role_Q == role)

    if not (role_Q == role).any():
        share = "test_query_share" if role == TEST else "validation_query_share"
        raise ValueError(
            f"none of the {len(role_Q):,} graded queries of {data} is held out, so table 1 has nothing to "
            f"measure; raise {share} in [holdout] (now {getattr(holdout, share):g}) and train again, or "
            "grade more queries"
        )
    judgements = judged(role)
    rows: dict[str, TableRow] = {}
    if baselines:
        progress("tune BM25 on validation queries", 0, 1)
        rows["random"] = RandomRow()
        rows |= lexical_rows(catalog.ids, catalog.titles, judged(VALIDATION), pool=pool, k=k)
    rows |= {name: VectorRow(*_both_tables(folder)) for name, folder in tables.items()}
    group_Q = grades.intent_groups()
    evaluate = partial(
        evaluate_rows,
        rows,
        judgements,
        intents_Q=group_Q[role_Q == role],
        k=k,
        pool=pool,
        candidate=candidate,
        resamples=resamples,
        progress=progress,
    )
    seen_Q = np.isin(group_Q, group_Q[role_Q == TRAIN])[role_Q == role]
    slices = {"intent_unseen": ~seen_Q, "intent_seen": seen_Q}
    if truth is None:
        description = "graded pairs of held-out queries"
        return evaluate(simulated=False, description=description, query_slices=slices)
    tested_P = product_roles(catalog.ids, holdout) == TEST
    return evaluate(
        simulated=True,
        description="simulated marketplace, complete simulated truth",
        query_slices={**slices, **truth.kind_masks(judgements.queries)},
        product_slices={
            "held-out products": tested_P & unseen_products(ProductCatalog.open(data), holdout),
            "products whose title hides a fact": truth.hides_fact_P,
        },
    )


def held_out_of(tables: Mapping[str, Path], asked: HoldoutConfig | None = None) -> HoldoutConfig:
    """What was kept from the encoders of these folders of tables: `agreed_holdout` of their manifests.

    Raises:
        ValueError: they disagree with each other or with `asked`.
        EmbeddingTableError: a table cannot be read.
    """
    return agreed_holdout(recorded_holdouts(tables), asked)


def recorded_holdouts(tables: Mapping[str, Path]) -> dict[str, HoldoutConfig | None]:
    """What the manifests of these folders of tables say was kept from their encoders, by name and kind.

    Raises:
        EmbeddingTableError: a table cannot be read.
    """
    recorded: dict[str, HoldoutConfig | None] = {}
    for name, folder in tables.items():
        for kind in ("products", "queries"):
            if is_table(folder / kind):
                found = EmbeddingTable.load(folder / kind, verify=False).manifest.holdout
                recorded[f"{name}/{kind}"] = HoldoutConfig.of_record(found)
    return recorded


def _both_tables(folder: Path) -> tuple[EmbeddingTable, EmbeddingTable]:
    """Of products and of queries."""
    products, queries = (EmbeddingTable.load(folder / kind, verify=False) for kind in ("products", "queries"))
    return products, queries


def encoder_titles(folders: Sequence[Path]) -> list[str]:
    """What made the tables of each folder, in words: the training that its encoder has gone through.

    Two of one kind are told apart by the names of their folders.
    """
    titles = []
    for folder in folders:
        encoder_id = EmbeddingTable.load(folder / "products", verify=False).manifest.encoder_id
        stage = next((stage for stage in _AFTER if encoder_id.startswith(f"dashclip-{stage}-")), None)
        titles.append(_AFTER[stage] if stage else encoder_id)
    if len(set(titles)) < len(titles):
        titles = [f"{title} ({folder.name})" for title, folder in zip(titles, folders, strict=True)]
    return titles


def _vectors_of(name: str, folder: Path, *, product_ids: pa.Array, queries: pa.Array) -> VectorPair:
    """Vectors of the tables in a folder; its queries are opened only if there are some to look up."""
    if len(queries):
        return VectorPair.from_tables(
            name, *_both_tables(folder), product_ids=product_ids, query_texts=queries
        )
    products = EmbeddingTable.load(folder / "products", verify=False)
    vectors_PD = np.asarray(products.vectors_ND[products.rows_of(product_ids)], np.float32)
    return VectorPair(name, vectors_PD, np.zeros((0, products.dim), np.float32))


def measure_probes(
    data: Path,
    before: Path,
    after: Path,
    *,
    holdout: HoldoutConfig | None = None,
    progress: Progress = silent,
) -> tuple[ProbeReport, VectorPair, VectorPair, ProbeLabels]:
    """The probes of paper section 5 on two folders of tables, as far as the data allow them.

    Like the paper's, the labels are set aside: only grades of held-out queries are used. Aisles are those of
    all products; stage 2 reads them to draw negatives of other aisles, so what it separates them by is no
    surprise. Queries of one intent stand on one side of a split over queries. Without grades the probe of
    aisles is left. `holdout` as in `measure_retrieval`.

    Raises:
        ProbeImpossibleError: there are neither aisles nor grades to probe.
        ValueError: a table is missing or of another data set, or hold-outs differ.
    """
    holdout = held_out_of({"before": before, "after": after}, holdout)
    catalog = ProductCatalog.open(data)
    none = np.empty(0, np.int64)
    queries = pa.array([], pa.string())
    labels = ProbeLabels(catalog.aisles, none, none, none, catalog.group_P)
    if table_files(data, "relevance"):
        grades = read_grades(data)
        queries = grades.queries
        labels = ProbeLabels(
            aisles=catalog.aisles,
            product_N=grades.product_G.astype(np.int64),
            query_N=grades.query_G.astype(np.int64),
            grade_N=grades.grade_G.astype(np.int64),
            product_group_P=catalog.group_P,
            query_group_Q=grades.intent_groups(),
        ).restricted_to(grades.query_roles(holdout) != TRAIN)
    pairs = [
        _vectors_of(name, folder, product_ids=catalog.ids, queries=queries)
        for name, folder in zip(encoder_titles((before, after)), (before, after), strict=True)
    ]
    report = run_probes(pairs[0], pairs[1], labels, progress=progress)
    return report, pairs[0], pairs[1], labels
