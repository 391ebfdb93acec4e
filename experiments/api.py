"""The public Python API: every main job without the command line, under the names the packages give them.

`data` is a folder with the four input tables: products, impressions and, where they exist, purchases and
relevance. Each job writes a folder that the next one opens. The `dashclip` commands call these functions, so
Python and the command line can take turns. `experiments/examples/` shows them at work.

Importing this module imports torch, torchrec and transformers (some seconds). A program that only sends
requests imports `serving.client` and `features.online.request` instead, which need none of them.
"""

from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.importing import import_vectors
from embeddings.tables.lsa import embed_lsa
from embeddings.tables.off_the_shelf import embed_off_the_shelf
from experiments.config import load_config
from experiments.encoders.config import EncodersConfig
from experiments.encoders.pipeline import (
    encode_tables,
    measure_retrieval,
    run_align,
    run_pretrain,
)
from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import generate as generate_marketplace
from experiments.reports.table2.page import write_report
from experiments.runtime.environment import environment
from experiments.runtime.mlflow_tracker import MlflowTracker
from experiments.runtime.run_layout import package_run
from experiments.sweeps.sweep import SweepConfig, VariantConfig, execute_sweep
from experiments.sweeps.table2 import build_report
from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.inputs.validation import check_or_raise, validate
from features.offline.build import build as build_features
from features.online.request import ScoreRequest
from features.schema import (
    CounterConfig,
    DenseFeature,
    FeatureConfig,
    HistoryConfig,
    LabelConfig,
    SparseFeature,
    SplitConfig,
)
from ranking.metrics import evaluate
from ranking.model import RankerConfig, SemanticConfig
from ranking.run import Run, RunConfig, execute_run, load_run
from ranking.train import TrainingConfig
from serving.client import ScoreClient
from serving.packaging.build_package import PackageOptions
from serving.packaging.refresh import refresh as refresh_package
from serving.scoring.predictor import Predictor
from serving.servers.torchserve.archive import archive_package, example_request
from serving.wire.reply import ScoreReply

__all__ = [  # noqa: RUF022 - in the order of the work
    # Input tables
    "InputTables",  # the four tables of a folder, footers checked: InputTables.open(data)
    "check_or_raise",  # refuses tables with a bad row, naming the first
    "generate_marketplace",  # a simulated marketplace as input tables
    "MarketplaceConfig",  # its size and effects: MarketplaceConfig.preset("tiny")
    "validate",  # every row against the named rules: report, quarantine, clean copy
    # Features
    "build_features",  # tables to a feature set, point-in-time correct
    "FeatureConfig",  # every feature of an impression, and how the log is cut in time
    "DenseFeature",  # a number
    "SparseFeature",  # an id with a trainable embedding
    "CounterConfig",  # impressions, clicks and CTR in trailing windows
    "HistoryConfig",  # the user's purchases before the impression
    "LabelConfig",  # how long after its impression a click counts
    "SplitConfig",  # training, validation and test days
    "FeatureSet",  # a built feature set: FeatureSet.open(folder)
    # Vectors
    "EmbeddingTable",  # ids and vectors on disk: EmbeddingTable.load(folder)
    "import_vectors",  # your vectors, from Parquet or .npy
    "embed_lsa",  # TF-IDF and SVD of titles and queries: a baseline without training
    "embed_off_the_shelf",  # CLIP, BLIP or FLAVA as published
    # Encoders
    "EncodersConfig",  # both training stages: load_config(Path("encoders_small"), EncodersConfig)
    "run_pretrain",  # stage 1: images and titles
    "run_align",  # stage 2: queries and products, from relevance grades
    "DashClipEncoder",  # a trained encoder: DashClipEncoder.load(run / "encoder")
    "encode_tables",  # all products and queries of DATA to embedding tables
    "measure_retrieval",  # table 1: retrieval of held-out queries against baselines
    # Rankers
    "RunConfig",  # one ranker: features, vectors, sizes, training, seed
    "RankerConfig",  # sizes of its layers and tables
    "SemanticConfig",  # its DashCLIP tower: which vectors it reads
    "TrainingConfig",  # batches, epochs, early stop, learning rates
    "execute_run",  # trains one ranker and tests it; returns its metrics
    "environment",  # versions, commit and hardware, which execute_run stores beside them
    "MlflowTracker",  # an MLflow server that hears of runs: execute_run(..., tracker=MlflowTracker(uri))
    "load_run",  # a trained ranker with its data
    "Run",  # what load_run returns
    "evaluate",  # AUC, log loss, calibration and grouped AUC of any scores
    # Sweeps
    "SweepConfig",  # variants x seeds on the same features
    "VariantConfig",  # what one variant has of its own
    "execute_sweep",  # trains what is not finished yet, on several processes
    "build_report",  # table 2: differences with intervals, per slice
    "write_report",  # the same as JSON, Markdown and a page
    "load_config",  # any of these configs from TOML, or a shipped one by name
    # Serving
    "package_run",  # a trained run to a package that a server opens
    "PackageOptions",  # type of the vectors, backend, recorded requests
    "refresh_package",  # new vectors, counters and purchases for a package that serves
    "archive_package",  # a package into a TorchServe model store
    "Predictor",  # scores in this process: Predictor.load(package).score(request)
    "ScoreClient",  # scores over HTTP: ScoreClient(url).score(request)
    "ScoreRequest",  # user, query and candidates
    "ScoreReply",  # their scores, best first, and what was unknown
    "example_request",  # a request that a package knows
]
