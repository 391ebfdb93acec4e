"""Makes a package of a trained run: everything a server needs, in one folder that is whole or absent.

    PACKAGE/manifest.json            what it is, made of what, with the checksums of all that never changes
        model/                       the dense part as a program, its weights, tables/<feature>.npy
        schema/                      the feature schema: what a refresh makes snapshots by
        query_encoder/               optional: embeds queries that no table knows
        parity/requests.jsonl        recorded requests, with every feature that their impressions saw
        generations/000001/          vectors, feature snapshot, the scores of the recorded requests
        CURRENT                      name of the live generation
        gate.toml                    what a refresh may change; for people to edit
        serving.toml                 whether tables are held in memory; for people to edit

A worker does not import this module: it needs torchrec to open the run.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from embeddings.embedding_table import EmbeddingTable
from features.artifacts import MANIFEST, atomic_folder, json_file_has, refuse_to_replace_input
from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.online.plan import context_columns, request_columns
from features.online.snapshot import schema_fingerprint
from features.progress import Progress, silent
from ranking.run import Run, is_finished, load_run
from serving.package.generations import activate, new_generation, next_name, seal_generation
from serving.package.manifest import (
    FIXED_PARTS,
    MODEL,
    QUERY_ENCODER,
    SCHEMA,
    BackendRecord,
    EntityKind,
    PackageManifest,
    ParityRecord,
    TableType,
    VectorSource,
)
from serving.package.parity import TOLERANCE, write_requests, write_scores
from serving.package.residency import ServingSettings
from serving.package.sealed_folder import PackageError, record_files
from serving.package.tables import ServingTable, open_table, quantise_rows, write_table, zero_rows
from serving.package.vectors import SourceVectors
from serving.packaging.build_generation import SnapshotSource, fill_generation, vectors_of_table
from serving.packaging.from_ranker import request_ranker_of, tables_of, vectors_of
from serving.packaging.gate import GateLimits
from serving.packaging.logged_requests import LoggedImpressions
from serving.packaging.serve_test_days import RECORD_REQUESTS, training_record_of
from serving.scoring.compile import Backend, Precision, compile_ranker
from serving.scoring.predictor import TABLES, Predictor
from serving.scoring.programs import BackendChoice
from serving.scoring.ranker_scorer import table_inputs
from serving.scoring.request_ranker import RequestRanker

#: Recorded requests: enough to meet every branch of the model, few enough to be scored in a blink.
PARITY_REQUESTS = 64
#: Product vectors that programs are compared and timed with.
_ROWS = 4096
#: Writes a query encoder into a folder and returns its encoder id.
ExportEncoder = Callable[[Path], str]


@dataclass(frozen=True)
class PackageOptions:
    """What a package may be asked to be.

    Attributes:
        tables: type of the product vectors in memory; int8 halves float16, at some accuracy.
        backend: what runs the dense part; "auto" takes the fastest that works here.
        precision: of its matrix products; "auto" takes bfloat16 where that is a fifth faster, or more.
        context: impression columns that a request gives once; None for the usual ones.
        projected: keep what the first layer makes of each product vector in a table instead of computing it
            for each candidate: faster, for up to three times the bytes.
        parity_requests: how many logged requests are recorded.
    """

    tables: TableType = "float16"
    backend: Backend = "auto"
    precision: Precision = "auto"
    context: tuple[str, ...] | None = None
    projected: bool = False
    parity_requests: int = PARITY_REQUESTS


def build_package(
    run_folder: Path,
    out: Path,
    *,
    log: Path,
    as_of_us: int,
    options: PackageOptions | None = None,
    export_encoder: ExportEncoder | None = None,
    commit: str | None = None,
    progress: Progress = silent,
) -> PackageManifest:
    """Write the package of a finished run to `out`, load it and compare it with the run's own predictions.

    Args:
        log: folder with the four tables, of which the snapshot is made and requests are recorded.
        as_of_us: moment of the snapshot; what happened at it or later is not in it.
        export_encoder: writes the encoder of unseen queries.

    Raises:
        ValueError: the run is not finished, does not fit its inputs any more, or the log is not the one that
            its features were built from.
        PackageError: served scores differ from the run's predictions.
        FileExistsError: `out` holds something that is not a package.
    """
    options = options or PackageOptions()
    refuse_to_replace_input(out, run_folder)
    refuse_to_replace_input(out, log)
    if not is_finished(run_folder):
        raise ValueError(f"{run_folder} is not a finished run (no run.json); train it to the end first")
    progress("opening the run", 0, 1)
    run = load_run(run_folder)
    context = context_columns(run.feature_set.manifest.config, options.context)
    logged = LoggedImpressions(run.feature_set, InputTables.open(log), context=context)
    progress("opening the run", 1, 1)
    with atomic_folder(out, ours=is_package) as folder:
        _copy_schema(run.feature_set, folder / SCHEMA)
        encoder_id = export_encoder(folder / QUERY_ENCODER) if export_encoder else None
        parts = _Parts(run, run_folder, context, options)
        if encoder_id is not None:
            parts.check_encoder(encoder_id)
        progress("compiling the model", 0, 1)
        module = parts.request_ranker()
        choice = parts.write_model(module, folder / MODEL)
        progress("compiling the model", 1, 1)
        recorded = list(logged.requests(limit=options.parity_requests))
        write_requests(folder, [one.request for one in recorded])
        offline_M = logged.offline_probabilities(run_folder)
        rows_C = np.concatenate([one.rows_N for one in recorded])
        manifest = PackageManifest(
            model_version=parts.model_version,
            variant=run.config.variant,
            seed=run.config.seed,
            created=datetime.now(UTC),
            commit=commit,
            simulated=json_file_has(log / "marketplace.json", "simulated"),
            ranker=run.config.ranker.model_dump(mode="json"),
            dense_columns=run.feature_set.manifest.dense_columns,
            sparse_rows={column.name: column.rows for column in run.feature_set.manifest.sparse_columns},
            request_columns=parts.request_columns,
            context=context,
            entities=parts.entities,
            vectors={
                kind: VectorSource(encoder_id=source.encoder_id, dim=source.dim, trained=parts.is_trained)
                for kind, source in parts.vectors.items()
            },
            schema_fingerprint=schema_fingerprint(run.feature_set),
            query_encoder=encoder_id,
            backend=BackendRecord(
                name=choice.name,
                reason=choice.reason,
                arithmetic=choice.arithmetic,
                p50_ms={program.arithmetic: program.p50_ms for program in choice.programs},
            ),
            tables=options.tables,
            parity=ParityRecord(
                requests=len(recorded),
                candidates=len(rows_C),
                tolerance=max(
                    TOLERANCE[options.tables],
                    TOLERANCE["float16"] if options.projected else 0,
                    TOLERANCE["bfloat16"] if choice.arithmetic == "bfloat16" else 0,
                ),
            ),
            test_metrics=json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))["test"],
            sources=_sources(run_folder, log, run),
            files=record_files(folder, FIXED_PARTS),
        )
        asked = [one.request for one in logged.requests(limit=RECORD_REQUESTS)]
        del logged  # a kilobyte an impression, while the snapshot needs memory of its own
        manifest.write(folder)
        GateLimits().write(folder)
        ServingSettings().write(folder)
        name = next_name(folder)
        with new_generation(folder, name) as generation:
            about = fill_generation(
                generation,
                folder,
                manifest,
                module,
                name=name,
                based_on=None,
                snapshot=SnapshotSource(log, as_of_us),
                vectors=parts.vectors,
                progress=progress,
            )
            write_scores(generation, offline_M[rows_C])
            seal_generation(generation, about)
        activate(folder, name)
        progress("comparing with the run", 0, 1)
        predictor = Predictor.load(folder)
        progress("comparing with the run", 1, 1)
        record = training_record_of(predictor, asked, progress=progress)
        manifest = manifest.model_copy(update={"training_record": record})
        manifest.write(folder)
    return manifest


def is_package(folder: Path) -> bool:
    """Whether `build_package` wrote this folder."""
    return json_file_has(folder / MANIFEST, "model_version")


class _Parts:
    """What a run contributes."""

    def __init__(self, run: Run, run_folder: Path, context: Sequence[str], options: PackageOptions) -> None:
        self._run = run
        self._options = options
        manifest = run.feature_set.manifest
        self.request_columns = request_columns(manifest, context)
        semantic = run.config.ranker.semantic
        self.entities = semantic.entities if semantic else ()
        self.is_trained = semantic is not None and semantic.initialisation == "random"
        self.model_version = _model_version(run, run_folder)
        self.vectors = self._vectors()

    def check_encoder(self, encoder_id: str) -> None:
        """Refuse a query encoder whose vectors the model does not know."""
        wanted = self.vectors.get("query")
        if wanted is None:
            raise PackageError(
                f"{self.model_version} reads no query vectors; leave the query encoder (--encoder) out"
            )
        if wanted.encoder_id != encoder_id:
            raise PackageError(
                f"the query encoder is {encoder_id}, but {self.model_version} was trained with vectors of "
                f"{wanted.encoder_id}; give the encoder that made its query table"
            )

    def request_ranker(self) -> RequestRanker:
        """The ranker as it will serve."""
        columns = self._run.feature_set.manifest
        semantic = self._run.config.ranker.semantic
        if self._options.projected and "product" not in self.entities:
            raise ValueError(f"{self.model_version} reads no vectors of candidates; leave --projected out")
        if self._options.projected and semantic and semantic.reads == "similarity":
            raise ValueError(
                f"{self.model_version} reads similarities of vectors, which no projection gives; leave "
                "--projected out"
            )
        return request_ranker_of(
            self._run.ranker,
            dense_columns=columns.dense_columns,
            sparse_columns=[column.name for column in columns.sparse_columns],
            request_columns=self.request_columns,
            quantised=self._options.tables == "int8" and "product" in self.vectors,
            projected=self._options.projected,
        )

    def write_model(self, module: RequestRanker, folder: Path) -> BackendChoice:
        """Write program, weights and trained tables."""
        # Small tables make nearly all of the error of 8 bits and few of the bytes: they stay float16.
        small: TableType = "float32" if self._options.tables == "float32" else "float16"
        for name, table_MD in tables_of(self._run.ranker).items():
            write_table(folder / TABLES / f"{name}.npy", table_MD, dtype=small)
        shape = module.shape
        product = self.vectors.get("product")
        vectors = _some_rows(product.vectors_MD, self._options.tables) if product else None
        examples = table_inputs(
            shape,
            tables={name: open_table(folder / TABLES / f"{name}.npy") for name in shape.sparse_columns},
            vectors=vectors,
            projections=_some_rows(np.zeros((vectors.rows, shape.projection_dim)), "float16")
            if vectors and shape.projected
            else None,
        )
        return compile_ranker(
            module, examples, folder, backend=self._options.backend, precision=self._options.precision
        )

    def _vectors(self) -> dict[EntityKind, SourceVectors]:
        config = self._run.config
        found: dict[EntityKind, SourceVectors] = {}
        kinds: tuple[tuple[EntityKind, Path | None], ...] = (
            ("product", config.product_table),
            ("query", config.query_table),
        )
        vectors = vectors_of(self._run.ranker)
        for kind, folder in kinds:
            if kind not in vectors:
                continue
            assert folder is not None, "a ranker with vectors has been given their ids"
            source = vectors_of_table(EmbeddingTable.load(folder, verify=False), kind=kind)
            if self.is_trained:  # what training took for missing has an untrained row
                vectors[kind][zero_rows(source.vectors_MD)] = 0
                source = replace(source, encoder_id=f"trained with {self.model_version}")
            found[kind] = replace(source, vectors_MD=vectors[kind])
        return found


def _some_rows(array_MD: NDArray[np.floating], dtype: TableType) -> ServingTable:
    """The first rows as a table of the type that the program will read: enough to compare and time it."""
    rows_MD = np.asarray(array_MD[:_ROWS], np.float32)
    if dtype == "int8":
        quantised_MD, scales_M2 = quantise_rows(rows_MD)
        return ServingTable(torch.from_numpy(quantised_MD), torch.from_numpy(scales_M2))
    return ServingTable(torch.from_numpy(rows_MD.astype(dtype)), None)


def _model_version(run: Run, run_folder: Path) -> str:
    """`<variant>-seed<n>-<12 digits>` of weights, config and feature schema: equal ones score equally."""
    described = [
        (run_folder / "best" / "checksums.json").read_bytes(),
        run.config.ranker.model_dump_json().encode(),
        schema_fingerprint(run.feature_set).encode(),
    ]
    digest = hashlib.sha256(b"\0".join(described)).hexdigest()
    return f"{run.config.variant}-seed{run.config.seed}-{digest[:12]}"


def _copy_schema(feature_set: FeatureSet, folder: Path) -> None:
    """Manifest and vocabularies of a feature set, and the types of its ids without the ids."""
    (folder / "vocabularies").mkdir(parents=True)
    shutil.copyfile(feature_set.folder / "manifest.json", folder / "manifest.json")
    for column in feature_set.manifest.sparse_columns:
        name = f"vocabularies/{column.name}.parquet"
        shutil.copyfile(feature_set.folder / name, folder / name)
    for name in ("catalog", "queries", "users"):
        nothing = pq.read_schema(feature_set.folder / f"{name}.parquet").empty_table()
        pq.write_table(nothing, folder / f"{name}.parquet")


def _sources(run_folder: Path, log: Path, run: Run) -> dict[str, str]:
    found = {"run": run_folder, "log": log, "features": run.config.features}
    tables = {"product_table": run.config.product_table, "query_table": run.config.query_table}
    return {name: str(path) for name, path in (found | tables).items() if path is not None}
