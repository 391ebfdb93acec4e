"""A trained run: where its log lies, and a package of it."""

from pathlib import Path

from experiments.runtime.environment import commit
from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.progress import Progress, silent
from features.schema import LabelConfig
from ranking.run import run_config
from serving.package.manifest import PackageManifest
from serving.packaging.as_of import END, snapshot_source
from serving.packaging.build_package import ExportEncoder, PackageOptions, build_package


def log_of_run(run: Path) -> Path:
    """The folder `data` beside the run's feature set, as `dashclip demo` lays it out.

    Raises:
        ValueError: not a run, or there is no such folder.
    """
    features = run_config(run).features
    log = features.parent / "data"
    if not log.is_dir():
        raise ValueError(
            f"{log} does not exist; say with --data where the four tables lie that {features} was built from"
        )
    InputTables.open(log)
    return log


def labels_of_run(run: Path) -> LabelConfig:
    """Which clicks counted for the run's features."""
    return FeatureSet.open(run_config(run).features, verify=False).manifest.config.labels


def package_run(
    run: Path,
    out: Path,
    *,
    data: Path | None = None,
    as_of: str = END,
    encoder: Path | None = None,
    options: PackageOptions | None = None,
    progress: Progress = silent,
) -> PackageManifest:
    """Make a package of a finished run: a folder that a server opens without the run and the log.

    Args:
        data: folder with the four tables; that of `log_of_run` if None.
        as_of: moment of the feature snapshot, ISO 8601 in UTC, or "end" for after the last event.
        encoder: folder of the encoder that made the query table, or of the run that trained it: with it the
            package embeds queries that it has never seen.

    Raises:
        ValueError: what `log_of_run`, `snapshot_source` or `build_package` refuse.
    """
    log = data or log_of_run(run)
    return build_package(
        run,
        out,
        log=log,
        as_of_us=snapshot_source(log, as_of, labels_of_run(run)).as_of_us,
        options=options,
        export_encoder=_exporter(encoder) if encoder else None,
        commit=commit(),
        progress=progress,
    )


def _exporter(encoder: Path) -> ExportEncoder:
    def export(folder: Path) -> str:
        from embeddings.encoders.dashclip import is_encoder
        from embeddings.encoders.query_export import export_query_encoder

        trained = encoder / "encoder"  # `dashclip encode align OUT` writes it there, beside its tuples
        chosen = trained if not is_encoder(encoder) and is_encoder(trained) else encoder
        return export_query_encoder(chosen, folder).encoder_id

    return export
