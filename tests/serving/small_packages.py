"""Small trained runs on hand-made logs full of edges, and packages of them."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from embeddings.embedding_table import EmbeddingTable
from features.columns.clock import DAY_US
from features.feature_set import FeatureSet
from features.offline.build import build
from features.schema import SplitConfig
from ranking.model import RankerConfig, SemanticConfig
from ranking.run import RunConfig, execute_run, run_config
from ranking.train import TrainingConfig
from serving.package.generations import (
    GenerationManifest,
    activate,
    current_generation,
    generation_folder,
    next_name,
    seal_generation,
)
from serving.packaging.build_package import PackageOptions, build_package
from tests.features.small_logs import CONFIG, START_US, random_tables, write_tables

DIM = 8
#: The middle of the last day but one: some test impressions before it, some after.
AS_OF_US = START_US + 6 * DAY_US + DAY_US // 2
FEATURES = CONFIG.model_copy(update={"split": SplitConfig(validation_days=2, test_days=2)})


def write_vectors(folder: Path, kind: str, ids: pa.Array, *, seed: int, encoder_id: str = "random") -> Path:
    """An embedding table of random vectors; the first id has none, the second a vector of zeros."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(ids) - 1, DIM)).astype(np.float32)
    vectors[0] = 0
    EmbeddingTable.write(
        folder,
        ids=ids[1:],
        vectors_ND=vectors,
        encoder_id=encoder_id,
        kind=kind,  # type: ignore[arg-type]
        normalised=False,
    )
    return folder


def train_small(
    folder: Path, *, semantic: SemanticConfig | None, text_ids: bool = False, nobody: float = 0.0
) -> Path:
    """`folder`/data, features, products, queries and run; returns the run."""
    tables = random_tables(5, impressions=600, text_ids=text_ids, nobody=nobody)
    log = write_tables(folder / "data", tables)
    build(log, folder / "features", FEATURES, buckets=2, threads=1, memory_limit="200MB")
    feature_set = FeatureSet.open(folder / "features")
    write_vectors(folder / "products", "product", feature_set.catalog_ids(), seed=0)
    write_vectors(folder / "queries", "query", feature_set.queries(), seed=1)
    config = RunConfig(
        variant="small",
        seed=1,
        features=folder / "features",
        product_table=folder / "products" if semantic else None,
        query_table=folder / "queries" if semantic else None,
        ranker=RankerConfig(
            embedding_dim=4, cross_layers=2, deep_widths=(8,), top_widths=(8,), semantic=semantic
        ),
        training=TrainingConfig(batch_size=50, max_epochs=2, evaluations_per_epoch=1, precision="float32"),
    )
    execute_run(config, folder / "run", environment={})
    return folder / "run"


def package_small(folder: Path, **options: object) -> Path:
    """`folder`/package of `folder`/run, with the eager backend: it needs no compiler and no seconds."""
    build_package(
        folder / "run",
        folder / "package",
        log=folder / "data",
        as_of_us=AS_OF_US,
        options=PackageOptions(**{"backend": "eager", "parity_requests": 12, **options}),  # type: ignore[arg-type]
    )
    return folder / "package"


def package_other(folder: Path) -> Path:
    """`folder`/other_package: of the same log, with other weights and fewer columns (no vectors)."""
    config = run_config(folder / "run")
    changed = {"variant": "other", "seed": 2, "product_table": None, "query_table": None}
    ranker = config.ranker.model_copy(update={"semantic": None})
    execute_run(config.model_copy(update={**changed, "ranker": ranker}), folder / "other_run", environment={})
    build_package(
        folder / "other_run",
        folder / "other_package",
        log=folder / "data",
        as_of_us=AS_OF_US,
        options=PackageOptions(backend="eager", parity_requests=12),
    )
    return folder / "other_package"


def copy_generation(package: Path) -> str:
    """Make a copy of the live generation the live one, as a refresh that brings nothing new."""
    before, name = current_generation(package), next_name(package)
    folder = Path(shutil.copytree(generation_folder(package, before), generation_folder(package, name)))
    about = GenerationManifest.read(folder)
    (folder / "manifest.json").unlink()
    seal_generation(folder, about.model_copy(update={"name": name, "based_on": before}))
    activate(package, name)
    return name


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public half, as openssl writes them."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public
