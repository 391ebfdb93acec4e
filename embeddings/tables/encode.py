"""From an encoder and a catalogue or queries to EmbeddingTables: resumable, incremental, flat in memory.

Rows are encoded in shards that survive a kill (`embeddings.tables.shards`); within one, texts of like length
share a batch, so that little padding is computed. A vector depends neither on its batch nor on the order of
rows, up to rounding (1e-6; in bfloat16, which the encoder's `precision` may ask for, cosines to float32's
vectors are above .999). What is missing is counted, never an error: an unreadable image is quarantined and
its product encoded from the title alone, a product with neither image nor title is zeros.

Shapes: N products or queries, C rows of a shard, B rows of a batch, D embedding width.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from embeddings.catalog.device_copies import ToHost
from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable, is_table
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.shards import Shard, WorkFolder, part_of_work_folder, work_folder
from embeddings.tables.sources import Products, Queries, Rows, Source
from features.artifacts import refuse_foreign_folder
from features.progress import Progress, silent

Dtype = Literal["float16", "float32"]

#: Rows computed between two points from which a killed run can go on: minutes for `base` on two CPU cores.
SHARD_ROWS = 1024
#: Written beside the product table: product_id, image, reason.
QUARANTINE = "quarantine.parquet"
UNSAVED = DashClipEncoder.encoder_id  # a class attribute: the default of the field


class EncodeError(ValueError):
    """A table that cannot be encoded as asked; the message says what to change."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """The written table, and where its N rows came from: encoded + resumed + copied = N."""

    table: EmbeddingTable
    #: By this call.
    encoded: int
    #: By an earlier call that was stopped.
    resumed: int
    #: Taken over from the older table.
    copied: int
    #: Of encoded and resumed rows: images that could not be read, and what there was to encode.
    quarantined: int = 0
    without_image: int = 0
    without_title: int = 0


def encode_products(
    encoder: DashClipEncoder,
    catalog: ProductCatalog,
    out: Path,
    *,
    batch_size: int = 64,
    only_new_from: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: Dtype = "float16",
    loaders: int = 2,
    shard_rows: int = SHARD_ROWS,
    progress: Progress = silent,
) -> Encoded:
    """Write the EmbeddingTable of a whole catalogue to `out`, and `quarantine.parquet` beside it.

    Killed and called again, it goes on after the last finished shard, and computes those again whose titles
    or image files have changed meanwhile. The work lies in a hidden folder beside `out` until the end.

    Args:
        only_new_from: an older table of the same encoder, modalities and text columns, `out` itself
            included. Its vectors are copied, by id alone: a changed title or picture of a known product is
            not noticed. Encoded again are zeros and what the `quarantine.parquet` beside it lists.
        loaders: threads that read pictures while the encoder computes.
        progress: called with ("products", done, N) after each batch, the first time with the number of rows
            that needed none; then with ("table", 0, 1) and ("table", 1, 1).

    Raises:
        EncodeError: ids are null or repeated, the older table is of another encoder, or a vector is not
            finite.
        WorkFolderBusyError: another process encodes to the same `out`.
        FileExistsError: `out` holds something that is not an embedding table.
    """
    source = Products(encoder, catalog, batch_size=batch_size, loaders=loaders)
    return _encode(
        encoder,
        source,
        out,
        only_new_from=only_new_from,
        device=device,
        dtype=dtype,
        shard_rows=shard_rows,
        progress=progress,
    )


def encode_queries(
    encoder: DashClipEncoder,
    queries: pa.Array,
    out: Path,
    *,
    batch_size: int = 256,
    only_new_from: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: Dtype = "float16",
    shard_rows: int = SHARD_ROWS,
    progress: Progress = silent,
) -> Encoded:
    """Write the EmbeddingTable of distinct queries to `out`; otherwise like `encode_products`.

    A query without a single known token is zeros, counted in `table.manifest.zero_vectors`.
    """
    source = Queries(encoder, queries, batch_size=batch_size)
    return _encode(
        encoder,
        source,
        out,
        only_new_from=only_new_from,
        device=device,
        dtype=dtype,
        shard_rows=shard_rows,
        progress=progress,
    )


@dataclass(frozen=True, eq=False)
class _OldTable:
    table: EmbeddingTable
    #: Row in it of each of N ids; 0 = encode.
    row_N: Rows


@dataclass(frozen=True)
class EncodedPart:
    """How many rows of a table's part were encoded by this call, and by an earlier one that was stopped."""

    encoded: int
    resumed: int
    copied: int


def encode_part(
    encoder: DashClipEncoder,
    source: Source,
    out: Path,
    *,
    number: int,
    count: int,
    only_new_from: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: Dtype = "float16",
    shard_rows: int = SHARD_ROWS,
    progress: Progress = silent,
) -> EncodedPart:
    """Compute part `number` of `count` of a table's shards, for one of several processes on a shared disk.

    No table is written: `encode_products` or `encode_queries` of the same arguments finds the shards of all
    parts, computes what is missing, and does. Arguments and errors are theirs.

    Raises:
        WorkFolderBusyError: another process computes this part, or writes the table.
    """
    job = _Job.of(encoder, source, Path(out), only_new_from, device=device, dtype=dtype, rows=shard_rows)
    totals: Counter[str] = Counter()
    with part_of_work_folder(job.work_folder, number=number, count=count) as work:
        for shard_number in job.numbers[number - 1 :: count]:
            totals.update(job.shard(work, shard_number, progress=progress)[1])
    return EncodedPart(**{name: totals[name] for name in ("encoded", "resumed", "copied")})


@dataclass(frozen=True, eq=False)
class _Job:
    """The shards of one table, checked before the first is computed."""

    encoder: DashClipEncoder
    source: Source
    out: Path
    old: _OldTable | None
    dtype: Dtype
    dim: int
    shard_rows: int

    @classmethod
    def of(
        cls,
        encoder: DashClipEncoder,
        source: Source,
        out: Path,
        only_new_from: Path | None,
        *,
        device: torch.device | str,
        dtype: Dtype,
        rows: int,
    ) -> "_Job":
        if encoder.encoder_id == UNSAVED:
            raise EncodeError(
                "vectors carry the id of their encoder, and an unsaved one has none; save it first"
            )
        refuse_foreign_folder(out, ours=is_table)
        _check_ids(source)
        old = _open_old(Path(only_new_from), encoder, source, dtype=dtype) if only_new_from else None
        return cls(encoder, source, out, old, dtype, encoder.to(device).config.vector_dim, rows)

    @property
    def work_folder(self) -> Path:
        """Where shards lie until the table is written."""
        return self.out.parent / f".{self.out.name}.encoding"

    @property
    def numbers(self) -> range:
        """Of the shards, from 1."""
        return range(1, -(-len(self.source.ids) // self.shard_rows) + 1)

    def shard(self, work: WorkFolder, number: int, *, progress: Progress) -> tuple[Shard, dict[str, int]]:
        """A shard, computed unless it is there; and its rows by where they came from."""
        start = (number - 1) * self.shard_rows
        rows_C = np.arange(start, min(start + self.shard_rows, len(self.source.ids)), dtype=np.int64)
        copied = int(np.count_nonzero(self.old.row_N[rows_C])) if self.old else 0
        key = _key(self.encoder, self.source, rows_C, old=self.old, dtype=self.dtype)
        shard = work.read(number, key=key)
        rows = {"copied": copied, "encoded" if shard is None else "resumed": len(rows_C) - copied}
        if shard is None:
            shard = _encode_shard(
                self.source, rows_C, old=self.old, dtype=self.dtype, dim=self.dim, progress=progress
            )
            work.write(number, shard, key=key)
        return shard, rows


def _encode(
    encoder: DashClipEncoder,
    source: Source,
    out: Path,
    *,
    only_new_from: Path | None,
    device: torch.device | str,
    dtype: Dtype,
    shard_rows: int,
    progress: Progress,
) -> Encoded:
    out, rows = Path(out), len(source.ids)
    job = _Job.of(encoder, source, out, only_new_from, device=device, dtype=dtype, rows=shard_rows)
    totals: Counter[str] = Counter()
    unreadable: list[tuple[int, str]] = []
    with work_folder(job.work_folder) as work:
        for number in job.numbers:
            shard, of_shard = job.shard(work, number, progress=progress)
            totals.update(of_shard)
            unreadable += [(row, reason) for row, reason in shard.notes.pop("unreadable", [])]
            totals.update(shard.notes)
        progress(source.plural, rows, rows)
        progress("table", 0, 1)
        if isinstance(source, Products):
            # Before the table as well: after a kill in between, the table there still lacks what the older
            # list names, and the next call must encode it.
            source.write_quarantine(out.parent / QUARANTINE, unreadable, keep_older=True)
        table = EmbeddingTable.write(
            out,
            ids=source.ids,
            vectors_ND=work.join(len(job.numbers), dtype=dtype, dim=job.dim),
            encoder_id=encoder.encoder_id,
            kind=source.kind,
            normalised=True,
            holdout=None if encoder.holdout is None else encoder.holdout.model_dump(mode="json"),
        )
        if isinstance(source, Products):
            source.write_quarantine(out.parent / QUARANTINE, unreadable)
        progress("table", 1, 1)
    parts = ("encoded", "resumed", "copied", "without_image", "without_title")
    return Encoded(table=table, quarantined=len(unreadable), **{name: totals[name] for name in parts})


def _encode_shard(
    source: Source,
    rows_C: Rows,
    *,
    old: _OldTable | None,
    dtype: Dtype,
    dim: int,
    progress: Progress,
) -> Shard:
    vectors_CD = np.zeros((len(rows_C), dim), np.dtype(dtype))
    fresh = rows_C
    if old is not None:
        old_row_C = old.row_N[rows_C]
        known_C = old_row_C > 0
        vectors_CD[known_C] = old.table.vectors_ND[old_row_C[known_C]]
        fresh = rows_C[~known_C]
    length = np.array([source.lengths[row] for row in fresh], dtype=np.int64)
    done, total = int(rows_C[-1]) + 1 - len(fresh), len(source.ids)
    progress(source.plural, done, total)
    for rows_B, on_the_way_BD in _one_behind(source.encode(fresh[np.argsort(length, kind="stable")])):
        found_BD = on_the_way_BD.read().numpy()
        finite_B = np.isfinite(found_BD).all(axis=1)
        if not finite_B.all():
            bad = source.ids[int(rows_B[~finite_B][0])].as_py()
            raise EncodeError(
                f"the vector of {source.kind} {bad!r} must be finite, but the encoder gave NaN or infinity: "
                "its weights are damaged or its training diverged; take an earlier checkpoint"
            )
        vectors_CD[rows_B - rows_C[0]] = found_BD
        done += len(rows_B)
        progress(source.plural, done, total)
    return Shard(vectors_CD, source.take_notes())


def _one_behind(encoded: Iterable[tuple[Rows, torch.Tensor]]) -> Iterator[tuple[Rows, ToHost]]:
    """Each batch once the next one is asked for, so that a GPU has work while its vectors are stored."""
    before: tuple[Rows, ToHost] | None = None
    for rows_B, vectors_BD in encoded:
        if before is not None:
            yield before
        before = rows_B, ToHost(vectors_BD.float())
    if before is not None:
        yield before


def _key(
    encoder: DashClipEncoder, source: Source, rows_C: Rows, *, old: _OldTable | None, dtype: Dtype
) -> str:
    """Checksum of all that a shard depends on."""
    config = encoder.config.model_dump_json()
    digest = hashlib.sha256(f"{encoder.encoder_id} {config} {source.kind} {dtype} {rows_C[0]}".encode())
    if encoder.computes_in_bfloat16:
        digest.update(b"bfloat16")
    digest.update(repr(old and old.table.manifest.checksums).encode())
    old_row_C = old.row_N[rows_C] if old else np.zeros_like(rows_C)
    ids = source.ids.slice(int(rows_C[0]), len(rows_C)).to_pylist()
    for row, product_id, old_row in zip(rows_C.tolist(), ids, old_row_C.tolist(), strict=True):
        digest.update(repr((product_id, old_row, source.inputs(row))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _open_old(folder: Path, encoder: DashClipEncoder, source: Source, *, dtype: Dtype) -> _OldTable:
    """The older table and which of its rows to copy."""
    table = EmbeddingTable.load(folder)
    wanted = (encoder.encoder_id, source.kind, dtype)
    found = (table.manifest.encoder_id, table.manifest.kind, table.manifest.dtype)
    for what, should_be, is_now in zip(("encoder", "kind", "number format"), wanted, found, strict=True):
        if should_be != is_now:
            raise EncodeError(
                f"the vectors of {folder} cannot be kept: their {what} is {is_now}, but {should_be} is asked "
                "for; encode everything, without an older table"
            )
    row_N = table.rows_of(source.ids)
    quarantine = folder.parent / QUARANTINE
    if source.kind == "product" and quarantine.is_file():
        again = pq.read_table(quarantine, columns=["product_id"]).column(0).cast(source.ids.type)
        row_N[pc.is_in(source.ids, value_set=again.combine_chunks()).to_numpy(zero_copy_only=False)] = 0
    for start in range(0, len(row_N), SHARD_ROWS):
        part = row_N[start : start + SHARD_ROWS]  # a view: zeros are set in row_N
        part[~table.vectors_ND[part].any(axis=1)] = 0
    return _OldTable(table, row_N)


def _check_ids(source: Source) -> None:
    """What the table would refuse after hours of work is refused before it."""
    nulls, distinct = source.ids.null_count, pc.count_distinct(source.ids).as_py()
    if nulls or distinct != len(source.ids):
        raise EncodeError(
            f"{source.plural} must be distinct and not null, but of {len(source.ids):,} {nulls:,} are null "
            f"and {distinct:,} distinct; keep one of each"
        )
