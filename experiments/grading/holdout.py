"""Which queries a grader is kept from: those that the encoders that it reads were kept from."""

from collections.abc import Mapping
from pathlib import Path

from embeddings.catalog.holdout import HoldoutConfig, agreed_holdout
from experiments.config import load_config
from experiments.encoders.config import EncodersConfig
from experiments.encoders.pipeline import recorded_holdouts


def holdout_of(
    config: Path | None,
    *,
    tables: Mapping[str, Path] | None = None,
    graders: Mapping[str, HoldoutConfig | None] | None = None,
    otherwise: str = "leave one of them out",
) -> HoldoutConfig:
    """What divides the queries: what graders and the encoders of tables were trained with, else the config.

    Raises:
        ValueError: two of these contradict each other.
        EmbeddingTableError: a table cannot be read.
    """
    asked = None if config is None else load_config(config, EncodersConfig).holdout
    recorded = {**(graders or {}), **recorded_holdouts(tables or {})}
    return agreed_holdout(recorded, asked, otherwise=otherwise)
