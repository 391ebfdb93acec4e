"""Encoders on real data: what `dashclip encode home-depot` and `encode grocery-store` encode and measure.

Tables are made again only when the encoder that made them was another one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embeddings.catalog.holdout import HoldoutConfig, agreed_holdout
from embeddings.catalog.inputs import read_distinct_queries
from embeddings.catalog.products import Modality, ProductCatalog
from embeddings.embedding_table import EmbeddingTable, is_table
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import encode_products, encode_queries
from embeddings.tables.lsa import embed_lsa
from experiments.datasets.grocery_store import ICONIC
from experiments.datasets.grocery_store_photos import GroceryStoreResults, evaluate_grocery_store
from experiments.datasets.home_depot_relevance import HomeDepotResults, Vectors, evaluate_home_depot
from experiments.encoders.config import EncodersConfig
from experiments.encoders.first_encoder import bert_encoder
from experiments.encoders.pipeline import run_align
from experiments.runtime.environment import environment
from experiments.runtime.progress import Bars
from features.artifacts import atomic_folder, atomic_write_bytes, atomic_write_json
from features.inputs.tables import find_table
from features.progress import Progress, silent

LSA, DASHCLIP, UNTRAINED, WARMED_UP = "lsa", "dashclip", "untrained", "warm-ups"
#: Wide enough to be hard to beat: LSA of 64 dimensions orders Home Depot's pairs worse.
LSA_DIM = 256
RESULTS, RESULTS_PAGE = "results.json", "results.md"


def measure_home_depot(
    data: Path,
    out: Path,
    encoder: DashClipEncoder | None,
    config: EncodersConfig,
    *,
    rows: Mapping[str, Path] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> HomeDepotResults:
    """Lexical scores, LSA, the folders of `rows` (with both tables) and `encoder`, on the test queries.

    What is held out is that of the config, which must be what `encoder` and the rows were trained with.

    LSA's tables go to `out`/lsa, those of the encoder, if there is one, to `out`/tables. Every row of vectors
    is fused with lexical scores as well.
    """
    if not is_table(out / LSA / "products"):
        embed_lsa(data, out / LSA, dim=LSA_DIM, progress=progress)
    folders = {LSA: out / LSA, **(rows or {})}
    if encoder is not None:
        folders[DASHCLIP] = out / "tables"
        _write_both_tables(encoder, data, folders[DASHCLIP], config, device=device, progress=progress)
    vectors = {
        name: Vectors(*(EmbeddingTable.load(folder / kind) for kind in ("products", "queries")))
        for name, folder in folders.items()
    }
    recorded = {name: HoldoutConfig.of_record(row.products.manifest.holdout) for name, row in vectors.items()}
    if encoder is not None:
        recorded[DASHCLIP] = encoder.holdout
    holdout = agreed_holdout(recorded, config.holdout)
    return evaluate_home_depot(data, vectors, holdout=holdout, fused=tuple(vectors), progress=progress)


def published_rows(
    data: Path,
    out: Path,
    name: str,
    model: str,
    config: EncodersConfig,
    *,
    device: str = "cpu",
    bars: Bars,
) -> dict[str, Path]:
    """Tables of published text weights as they are and after stage 2, as `name`_zero_shot and `name`_aligned.

    Args:
        model: as `bert_encoder` takes it.
        config: of stage 2, and which queries are held out.

    Returns:
        The folder of each row.
    """
    start = bert_encoder(model, config)
    rows = {f"{name}_zero_shot": out / "zero_shot", f"{name}_aligned": out / "tables"}
    aligned = run_align(data, out / "align", config, start=start, device=device, show=bars.training).encoder
    start = start.save(out / "start", stage="initial", trained_on=start.trained_on or {})
    for encoder, folder in zip((start, aligned), rows.values(), strict=True):
        _write_both_tables(encoder, data, folder, config, device=device, progress=bars)
    return rows


def _write_both_tables(
    encoder: DashClipEncoder,
    data: Path,
    folder: Path,
    config: EncodersConfig,
    *,
    device: str,
    progress: Progress,
) -> None:
    for kind in ("products", "queries"):
        write_table(
            encoder,
            data,
            folder / kind,
            modalities=config.modalities,
            text_columns=config.text_columns,
            device=device,
            progress=progress,
        )


def measure_grocery_store(
    data: Path,
    out: Path,
    encoders: Mapping[str, DashClipEncoder],
    config: EncodersConfig,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> GroceryStoreResults:
    """Probes on and retrieval by image-only and text-only vectors of each encoder.

    The tables go to `out`/tables/NAME/images and `out`/tables/NAME/texts; the iconic products have a text of
    each class, so no other's is read.
    """
    sources: dict[Modality, Path] = {"image": data, "text": photos_of(data, out / "iconic", split=ICONIC)}
    tables: dict[Modality, dict[str, EmbeddingTable]] = {"image": {}, "text": {}}
    for name, encoder in encoders.items():
        for modality, found in tables.items():
            found[name] = write_table(
                encoder,
                sources[modality],
                out / "tables" / name / f"{modality}s" / "products",
                modalities=(modality,),
                text_columns=config.text_columns,
                device=device,
                progress=progress,
            )
    return evaluate_grocery_store(data, tables["image"], tables["text"], progress=progress)


def photos_of(data: Path, folder: Path, *, split: str) -> Path:
    """A data folder with the products of one split of Grocery Store alone; the pictures are linked.

    Nothing that is trained on it can have seen a photo of another split.

    Raises:
        ValueError: `data` has no products with a `split`, or none in this one.
    """
    products = find_table(data, "products")
    if products is None or "split" not in products.schema.names:
        raise ValueError(
            f"{data} holds no products with a split; `dashclip import grocery-store` writes them"
        )
    table = products.to_table()
    chosen = table.filter(pc.equal(table.column("split"), split))
    if not len(chosen):
        raise ValueError(f"no product of {data} has split {split!r}; import the whole data set again")
    with atomic_folder(folder, ours=_is_photo_folder) as temporary:
        pq.write_table(chosen, temporary / "products.parquet")
        os.symlink((data / "images").resolve(), temporary / "images", target_is_directory=True)
    return folder


def write_table(
    encoder: DashClipEncoder,
    data: Path,
    folder: Path,
    *,
    modalities: Sequence[Modality],
    text_columns: Sequence[str] = ("title",),
    device: str = "cpu",
    progress: Progress = silent,
) -> EmbeddingTable:
    """The table of `encoder` in `folder`: of queries if that is its name, else of products.

    One that this encoder left there is opened. Delete the folder when titles or pictures have changed.
    """
    if is_table(folder):
        table = EmbeddingTable.load(folder)
        if table.manifest.encoder_id == encoder.encoder_id:
            return table
    if folder.name == "queries":
        queries: pa.Array = read_distinct_queries(data)
        return encode_queries(encoder, queries, folder, device=device, progress=progress).table
    catalog = ProductCatalog.open(data, modalities=tuple(modalities), text_columns=tuple(text_columns))
    return encode_products(encoder, catalog, folder, device=device, progress=progress).table


def write_results(
    folder: Path, results: HomeDepotResults | GroceryStoreResults, markdown: str, *, command: str
) -> None:
    """`results.json` and `results.md` in `folder`, with where and how they were made."""
    made = environment()
    provenance = {
        "command": command,
        "commit": made["commit"],
        "created": made["created"],
        "machine": f"{made['cores']} cores of {made['cpu']}",
        "torch": made["packages"]["torch"],
    }
    footer = (
        f"`{command}`, commit {made['commit']}, {made['created'][:10]}, {provenance['machine']}, "
        f"torch {provenance['torch']}."
    )
    results.model_copy(update={"provenance": provenance}).write(folder / RESULTS)
    atomic_write_bytes(folder / RESULTS_PAGE, f"{markdown.rstrip()}\n\n{footer}\n".encode())


def publish_results(run: Path, name: str, *, results: Path) -> list[Path]:
    """Copy what `write_results` left in `run` to `results`/NAME.json and NAME.md.

    Raises:
        FileNotFoundError: `run` has no results yet.
    """
    sources = (run / RESULTS, run / RESULTS_PAGE)
    for source in sources:
        if not source.is_file():
            raise FileNotFoundError(
                f"{source} does not exist; run `dashclip encode home-depot` or `grocery-store` first"
            )
    content = json.loads(sources[0].read_text(encoding="utf-8"))
    targets = [results / f"{name}.json", results / f"{name}.md"]
    atomic_write_json(targets[0], content)
    atomic_write_bytes(targets[1], sources[1].read_bytes())
    return targets


def _is_photo_folder(folder: Path) -> bool:
    return {child.name for child in folder.iterdir()} <= {"products.parquet", "images"}
