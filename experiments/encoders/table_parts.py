"""Part of the embedding tables of a catalogue, for one of several jobs that share a folder."""

from pathlib import Path

from embeddings.catalog.inputs import read_distinct_queries
from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.stages.run_folder import InputConfig
from embeddings.tables.encode import EncodedPart, encode_part
from embeddings.tables.sources import Products, Queries, Source
from experiments.runtime.parts import Part
from features.progress import Progress, silent


def encode_tables_part(
    data: Path,
    folder: Path,
    encoder: DashClipEncoder,
    part: Part,
    *,
    inputs: InputConfig,
    only_new_from: Path | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, EncodedPart]:
    """One part of the shards of both tables, by folder name; `pipeline.encode_tables` then writes them."""
    catalog = ProductCatalog.open(data, modalities=inputs.modalities, text_columns=inputs.text_columns)
    sources: dict[str, Source] = {"products": Products(encoder, catalog, batch_size=batch_size, loaders=2)}
    queries = read_distinct_queries(data)
    if len(queries):
        sources["queries"] = Queries(encoder, queries, batch_size=256)
    return {
        name: encode_part(
            encoder,
            source,
            folder / name,
            number=part.number,
            count=part.count,
            only_new_from=only_new_from and only_new_from / name,
            device=device,
            progress=progress,
        )
        for name, source in sources.items()
    }
