"""manifest.json of a package: what is served, made from what, and how it is checked.

PACKAGE/manifest.json, model/, schema/, query_encoder/ and parity/ never change once written; generations/ and
CURRENT do.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from features.artifacts import StrictModel
from serving.package.sealed_folder import FileRecord, read_sealed, write_manifest
from serving.package.training_record import RecordInManifest

MODEL, QUERY_ENCODER, PARITY, SCHEMA = "model", "query_encoder", "parity", "schema"
#: Everything in a package that is written once.
FIXED_PARTS = (MODEL, QUERY_ENCODER, PARITY, SCHEMA)
ADVICE = "make it with `dashclip package`"

TableType = Literal["float16", "int8", "float32"]
EntityKind = Literal["product", "query"]


class VectorSource(StrictModel):
    """Where the pretrained vectors of one kind come from; a refresh must bring the same.

    `trained` tables belong to the model's weights (random initialisation), so no refresh can replace them.
    """

    encoder_id: str
    dim: int
    trained: bool


class BackendRecord(StrictModel):
    """What runs the dense part, and why that and not another.

    Attributes:
        arithmetic: what multiplies its matrices (`serving.scoring.arithmetic`).
        p50_ms: of each program that was kept, by arithmetic, for 100 candidates where it was packaged.
    """

    name: str
    reason: str
    arithmetic: str = "torch"
    p50_ms: Mapping[str, float] = Field(default_factory=dict)


class ParityRecord(StrictModel):
    """Recorded requests, each with its logged features; the scores lie in every generation.

    `tolerance` is the largest difference of a probability at which a package still counts as loaded.
    """

    requests: int
    candidates: int
    tolerance: float


class PackageManifest(StrictModel):
    """What a package says of itself.

    Attributes:
        simulated: whether the model has learned from the simulated marketplace.
        ranker: the RankerConfig of the run.
        sparse_rows: rows of each sparse feature's table, in the model's order.
        request_columns: features that are the same for all candidates of a request, computed once.
        context: impression columns that a request gives once (`context`), not for each candidate.
        entities: what the DashCLIP tower reads; empty for the DCN baseline.
        vectors: sources of the vectors of "product" and "query".
        schema_fingerprint: of the feature schema, transforms and vocabularies; snapshots must have the same.
        query_encoder: id of the encoder that embeds unseen queries, if the package has one.
        training_record: how scores and features were distributed over requests of the test split, for the
            drift check; None in packages made before requests were counted.
        sources: the paths it was made from, as given: defaults of `dashclip refresh`.
    """

    format: Literal[1] = 1
    model_version: str
    variant: str
    seed: int
    created: datetime
    commit: str | None
    simulated: bool
    ranker: Mapping[str, Any]
    dense_columns: tuple[str, ...]
    sparse_rows: Mapping[str, int]
    request_columns: tuple[str, ...]
    context: tuple[str, ...]
    entities: tuple[str, ...]
    vectors: Mapping[EntityKind, VectorSource]
    schema_fingerprint: str
    query_encoder: str | None
    backend: BackendRecord
    tables: TableType
    parity: ParityRecord
    training_record: RecordInManifest = None
    #: Of the run on its test days; `undefined` says why a metric is null.
    test_metrics: Mapping[str, float | int | Mapping[str, str] | None]
    sources: Mapping[str, str]
    files: Mapping[str, FileRecord]

    def write(self, package: Path) -> None:
        """Write it, sealed."""
        write_manifest(package, self.model_dump(mode="json"))

    @classmethod
    def read(cls, package: Path) -> "PackageManifest":
        """Read it.

        Raises:
            PackageError: no package, a damaged manifest, or one of another format.
        """
        return read_sealed(package, cls, what="a package", advice=ADVICE)
