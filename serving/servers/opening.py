"""A package opened for a server: its predictor, and counts for the drift check."""

from pathlib import Path

from serving.package.manifest import PackageManifest
from serving.scoring.predictor import Predictor
from serving.servers.drift import LiveCounts


def open_package(package: Path) -> tuple[Predictor, LiveCounts]:
    """Load and verify a package.

    Raises:
        PackageError: a file is missing, damaged or altered, or the parity record does not come out.
    """
    predictor = Predictor.load(package)
    manifest = PackageManifest.read(package)
    return predictor, LiveCounts(manifest.training_record, manifest.dense_columns)
