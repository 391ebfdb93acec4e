"""The encoder and the catalogue that the tests of encoding share."""

from pathlib import Path

import pytest

from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import Encoded
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.tables.small_tables import PRODUCTS, encode, save_encoder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "aligned", seed=0)


@pytest.fixture
def encoder(encoder_folder: Path) -> DashClipEncoder:
    return DashClipEncoder.load(encoder_folder)


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by many tests, changed by none."""
    return write_small_catalog(
        tmp_path_factory.mktemp("shared") / "data", products=PRODUCTS, without_title=[3], without_image=[5, 6]
    )


@pytest.fixture(scope="module")
def plain(encoder_folder: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """The shared catalogue, encoded without a stop."""
    out = tmp_path_factory.mktemp("plain") / "products"
    return encode(DashClipEncoder.load(encoder_folder), shared_data, out)
