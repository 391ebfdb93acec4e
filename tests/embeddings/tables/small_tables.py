"""A tiny aligned encoder, and tables that it writes in small shards."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.completion import Completion
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import seeded
from embeddings.tables.encode import Encoded, encode_products
from tests.embeddings.small_catalog import small_tokenizer

PRODUCTS = 24
QUERIES = pa.array(["red circle", "blue square", "a much longer query for a pink ring", "green"])


def save_encoder(folder: Path, *, seed: int) -> Path:
    tokenizer = small_tokenizer()
    config = EncoderConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
    encoder = DashClipEncoder.new(config, tokenizer, seed=seed).with_query_encoder()
    completion = seeded(lambda: Completion(16, config.vocab_size, image_dim=16), seed)
    for parameter in completion.parameters():  # an untrained one would add nothing
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
    encoder.product.completion = completion
    encoder.save(folder, stage="aligned", trained_on={})
    return folder


def encode(encoder: DashClipEncoder, data: Path, out: Path, **settings: object) -> Encoded:
    arguments = {"batch_size": 4, "shard_rows": 7, "dtype": "float32"} | settings
    return encode_products(encoder, ProductCatalog.open(data), out, **arguments)


def vectors_by_id(table: EmbeddingTable) -> dict[object, np.ndarray]:
    return dict(zip(table.ids.to_pylist(), np.array(table.vectors_ND[1:]), strict=True))


def assert_same_files(first: Path, second: Path) -> None:
    for name in ("vectors.npy", "ids.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def change_products(data: Path, **columns: dict[int, object]) -> None:
    """Set cells of products.parquet: column = {position: value}."""
    table = pq.read_table(data / "products.parquet")
    for name, cells in columns.items():
        values = table.column(name).to_pylist()
        for position, value in cells.items():
            values[position] = value
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, data / "products.parquet")


class Stopped(Exception):
    pass


def stop_at(point: int):
    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("products", point):
            raise Stopped

    return progress
