"""Probabilities of impressions by a trained run, from features as its training had them.

Impressions of the run's test days are rows of its feature set. Others are put beside the log, and the
features are built again over both with the same cut in time: what was learned from the training days must
come out the same, and each impression sees what the log knew before it.

Shapes: N impressions that are asked for, M of the test split.
"""

import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from experiments.runtime.run_layout import log_of_run
from experiments.scoring.rows import ids_like
from features.columns.clock import DAY_US
from features.feature_set import FeatureSet
from features.inputs.plain_types import common_type, plain_type
from features.inputs.table_specs import TableName
from features.inputs.tables import InputTables
from features.offline.build import build
from features.progress import Progress, silent
from features.schema import FeatureConfig, SparseFeature
from ranking.prediction import predict
from ranking.run import load_run, run_config

#: What `predict_impressions` needs of each row, whatever the features are.
NEEDED = ("impression_id", "timestamp", "user_id", "product_id")
_MOMENTS = ("click_timestamp", "timestamp")
_OTHER_TABLES: tuple[TableName, ...] = ("products", "purchases")


def predict_impressions(
    run: Path,
    impressions: pa.Table,
    *,
    data: Path | None = None,
    device: torch.device | None = None,
    progress: Progress = silent,
) -> npt.NDArray[np.float64]:
    """The probability of a click for each impression [N].

    A click of these impressions counts for later ones if `clicked` says so; without that column nobody
    clicked any of them.

    Args:
        data: folder with the log that the run learned from, perhaps longer by now; that of `log_of_run` if
            None.

    Raises:
        ValueError: an impression is earlier than the test days or of no known product, a column that features
            read is missing or of another type than in the log, or the log is not the one that the run learned
            from.
    """
    chosen = device or torch.device("cpu")
    known = FeatureSet.open(run_config(run).features)
    ids = ids_like(impressions["impression_id"], _test_ids(known).type, name="impression_id")
    impressions = _with_column(impressions, "impression_id", ids)
    _refuse_nulls(impressions, ("impression_id",))
    twice = pc.value_counts(ids).filter(pc.greater(pc.struct_field(pc.value_counts(ids), 1), 1))
    if len(twice):
        raise ValueError(f"impression_id {twice[0]['values'].as_py()!r} is there more than once")
    if pc.all(pc.is_in(ids, _test_ids(known))).as_py():
        return _probabilities(run, known.folder, ids, device=chosen)
    log = data or log_of_run(run)
    with tempfile.TemporaryDirectory(prefix="dashclip-predict-") as scratch:
        home = Path(scratch)
        added = _beside_the_log(log, impressions, home / "data", known.manifest.config)
        config = _same_cut(known, InputTables.open(home / "data"), added)
        build(home / "data", home / "features", config, progress=progress)
        _check_same_learning(known, FeatureSet.open(home / "features"))
        return _probabilities(run, home / "features", ids, device=chosen)


def _test_ids(features: FeatureSet) -> pa.Array:
    parts = [pq.read_table(path, columns=["impression_id"]) for path in features.split_files("test")]
    return pa.concat_tables(parts)["impression_id"].combine_chunks()


def _probabilities(
    run: Path, features: Path, ids: pa.Array, *, device: torch.device
) -> npt.NDArray[np.float64]:
    loaded = load_run(run, features=features, device=device)
    _, logit_M = predict(loaded.ranker, loaded.loader("test"), device=device)
    row_N = pc.index_in(ids, _test_ids(loaded.feature_set)).to_numpy(zero_copy_only=False)
    return 1 / (1 + np.exp(-logit_M[row_N.astype(np.int64)].astype(np.float64)))


def _beside_the_log(log: Path, impressions: pa.Table, folder: Path, config: FeatureConfig) -> pa.Table:
    """Lay out a data folder with the log's files and the impressions that it lacks; returns these."""
    tables = InputTables.open(log)
    for name in _OTHER_TABLES:
        if tables.has(name):
            _link(tables.files(name), folder / name)
    _link(tables.files("impressions"), folder / "impressions")
    logged = tables.table("impressions").to_table(["impression_id"])["impression_id"].combine_chunks()
    ids = impressions["impression_id"].combine_chunks()
    added = impressions.filter(pc.invert(pc.is_in(ids, logged)))
    added = _as_logged(_complete(added, config), tables)
    if len(added):
        asked_for = folder / "impressions" / "asked_for.parquet"
        pq.write_table(added, asked_for, coerce_timestamps="us", allow_truncated_timestamps=True)
    return added


def _link(files: tuple[Path, ...], folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, path in enumerate(files):
        (folder / f"part-{number:05d}.parquet").symlink_to(path.resolve())


def _as_logged(added: pa.Table, log: InputTables) -> pa.Table:
    """With ids of the log's types.

    Raises:
        ValueError: a column or a value is none that the log may hold.
    """
    schema = log.schema("impressions")
    for name in ("user_id", "product_id"):
        if name in schema.names:
            added = _with_column(added, name, ids_like(added[name], schema.field(name).type, name=name))
    for field in added.schema:
        logged = schema.field(field.name).type if field.name in schema.names else field.type
        if common_type(plain_type(logged), plain_type(field.type)) is None:
            offset = "; times need their offset from UTC (2024-05-01T12:00:00Z)"
            raise ValueError(
                f"{field.name} is {field.type} here but {logged} in the log; write it as the log has it"
                + (offset if pa.types.is_timestamp(logged) else "")
            )
    _refuse_nulls(added, ("timestamp", "product_id"))
    if log.has("products"):
        known = log.table("products").to_table(["product_id"])["product_id"].combine_chunks()
        unknown = added["product_id"].filter(pc.invert(pc.is_in(added["product_id"], value_set=known)))
        if len(unknown):
            raise ValueError(
                f"{len(unknown):,} impressions name a product that the log's products lack, such as "
                f"{unknown[0].as_py()!r}; leave them out, or give a log that has it with --data"
            )
    wrong = added["clicked"].filter(
        pc.invert(pc.is_in(pc.cast(added["clicked"], pa.float64()), pa.array([0.0, 1.0])))
    )
    if len(wrong):
        raise ValueError(
            f"clicked must be 0 or 1, got {wrong[0].as_py()!r}; leave the column out if nobody knows"
        )
    if "click_timestamp" in added.column_names:
        moments = (added[name].cast(pa.timestamp("us", "UTC"), safe=False) for name in _MOMENTS)
        early = added.filter(pc.less(*moments))
        if len(early):
            raise ValueError(
                f"{len(early):,} impressions were clicked before they were shown, such as "
                f"{early['impression_id'][0].as_py()!r}; correct click_timestamp, or leave the column out"
            )
    return added


def _refuse_nulls(rows: pa.Table, names: tuple[str, ...]) -> None:
    for name in names:
        if nulls := rows[name].null_count:
            raise ValueError(f"{nulls:,} of {len(rows):,} impressions have no {name}; give each one")


def _with_column(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


def _complete(added: pa.Table, config: FeatureConfig) -> pa.Table:
    """With `clicked`, and with what a server would take for columns that are known after ranking only."""
    if "clicked" not in added.column_names:
        added = added.append_column("clicked", pa.array(np.zeros(len(added), np.int8)))
    for feature in config.features:
        if feature.source != "impressions" or feature.column in added.column_names:
            continue
        value = feature.serving_value if isinstance(feature, SparseFeature) else None
        if value is None:
            raise ValueError(
                f"the run reads the column {feature.column!r} of impressions, which these lack; add it (null "
                "where there is no value)"
            )
        added = added.append_column(feature.column, pa.array([value] * len(added)))
    return added


def _same_cut(known: FeatureSet, tables: InputTables, added: pa.Table) -> FeatureConfig:
    """The run's feature config with the test days longer by as much as the log is now.

    Raises:
        ValueError: the cut is by user, or an impression lies before the test days.
    """
    config = known.manifest.config
    if config.split.method != "global":
        raise ValueError(
            "this run's log is cut by user, where a further impression changes what is training and what is "
            "test; only impressions of its test rows can be predicted"
        )
    end_day = _day(known.manifest.splits["test"].end)
    first_test_day = end_day - config.split.test_days + 1
    if len(added):
        earliest = pc.min(added["timestamp"]).as_py()
        if _day(earliest.isoformat()) < first_test_day:
            first = np.datetime64(first_test_day, "D")
            raise ValueError(
                f"an impression is of {earliest:%Y-%m-%d}, but the run was trained and stopped on days "
                f"before {first}; give impressions from that day on"
            )
    newest = pc.max(tables.table("impressions").to_table(["timestamp"])["timestamp"]).as_py()
    longer = _day(newest.isoformat()) - end_day
    split = config.split.model_copy(update={"test_days": config.split.test_days + longer})
    return config.model_copy(update={"split": split})


def _day(moment: str) -> int:
    """UTC day since 1970 of an ISO moment with its zone."""
    return int(datetime.fromisoformat(moment).timestamp() * 1_000_000 // DAY_US)


def _check_same_learning(known: FeatureSet, built: FeatureSet) -> None:
    """What features learned from the training days is what the run was trained with.

    Raises:
        ValueError: it is not, so the log is another one.
    """

    def learned(features: FeatureSet) -> object:
        manifest = features.manifest
        files = {name: sum_ for name, sum_ in manifest.checksums.items() if name.startswith("vocabularies/")}
        rows = {name: manifest.splits[name].rows for name in ("train", "validation")}
        return manifest.transforms, manifest.counter_prior_ctr, files, rows

    if learned(known) != learned(built):
        raise ValueError(
            f"the log differs from the one that {known.folder} was built from on its training or validation "
            "days, so features would mean something else; give that log with --data"
        )
