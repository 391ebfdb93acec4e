"""TorchEasyRec's DCN-v2, trained by its own `train_and_evaluate`, from a checkout.

Its install wants packages that are on no index, and some that only read from clouds; `LACKING` are replaced
by modules that can be imported and do nothing, since rows come from Parquet and its feature generator is off
(FG_NONE). Its cross layers are low-rank only: half of the width, so that a layer costs as much as a full one.
Its config demands a last layer (`final`), here of 16. It runs on the torch and torchrec of this environment.
"""

import importlib.abc
import importlib.machinery
import logging
import os
import sys
import types
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from experiments.benchmarks.training.peers import protocol

#: What TorchEasyRec imports and this benchmark does not need.
LACKING = (
    *("pyfg", "graphlearn", "common_io", "feature_store_py", "confluent_kafka", "odps"),
    *("alibabacloud_credentials", "anytree", "dynamicemb", "faiss"),
)


class Nothing(type):
    """A class of classes that are empty, and so is whatever is asked of them."""

    def __getattr__(cls, name: str) -> "Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name, (), {})


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module, every name of which is an empty class, for each of `LACKING`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in LACKING:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = partial(getattr, Nothing(module.__name__, (), {}))  # type: ignore[method-assign]


def write_parquet(columns: dict[str, NDArray[Any]], path: Path) -> None:
    """The rows as TorchEasyRec reads them."""
    wide = {
        name: column.astype(np.int64) if column.dtype.kind == "i" else column.astype(np.float32)
        for name, column in columns.items()
    }
    pq.write_table(pa.table(wide), path, row_group_size=65_536)


def config_text(request: protocol.Request, table_rows: dict[str, int], dense: list[str], folder: Path) -> str:
    """Its pipeline config."""
    half = (len(dense) + len(table_rows) * protocol.EMBEDDING_DIM) // 2
    names = [*dense, *table_rows]
    precision = 'mixed_precision: "BF16"' if request.precision == "bfloat16" else ""
    features = [
        f'feature_configs {{ raw_feature {{ feature_name: "{name}" expression: "user:{name}" }} }}'
        for name in dense
    ] + [
        f'feature_configs {{ id_feature {{ feature_name: "{name}" expression: "user:{name}" '
        f"num_buckets: {rows} embedding_dim: {protocol.EMBEDDING_DIM} }} }}"
        for name, rows in table_rows.items()
    ]
    return f"""
train_input_path: "{folder}/train.parquet"
eval_input_path: ""
model_dir: "{folder}/model"
train_config {{
  sparse_optimizer {{ adagrad_optimizer {{ lr: 0.02 }} constant_learning_rate {{ }} }}
  dense_optimizer {{ adam_optimizer {{ lr: {protocol.LEARNING_RATE} }} constant_learning_rate {{ }} }}
  num_epochs: 1
  use_tensorboard: false
  {precision}
}}
data_config {{
  batch_size: {request.batch_size}
  dataset_type: ParquetDataset
  label_fields: "clicked"
  num_workers: 1
  pin_memory: false
  fg_mode: FG_NONE
}}
{chr(10).join(features)}
model_config {{
  feature_groups {{
    group_name: "all"
    {" ".join(f'feature_names: "{name}"' for name in names)}
    group_type: DEEP
  }}
  dcn_v2 {{
    cross {{ cross_num: {protocol.CROSS_LAYERS} low_rank: {half} }}
    deep {{ {" ".join(f"hidden_units: {width}" for width in protocol.DEEP_WIDTHS)} }}
    final {{ hidden_units: 16 }}
  }}
  metrics {{ auc {{ }} }}
  losses {{ binary_cross_entropy {{ }} }}
}}
"""


def main() -> None:
    """Train one epoch and print the outcome."""
    request = protocol.read_request()
    sys.meta_path.append(Stubs())
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(request.seed)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    table_rows = protocol.read_table_rows(request.data)
    train, test = (protocol.read_columns(request.data / f"{name}.npz") for name in (request.train, "test"))
    dense = [name for name in train if name not in (*table_rows, "clicked")]
    with TemporaryDirectory() as name:
        folder = Path(name)
        order_N = np.random.default_rng(request.seed).permutation(len(train["clicked"]))
        write_parquet({name: column[order_N] for name, column in train.items()}, folder / "train.parquet")
        write_parquet(test, folder / "test.parquet")
        (folder / "pipeline.config").write_text(config_text(request, table_rows, dense, folder))
        _train(request, folder, test["clicked"], len(order_N))


def _train(request: protocol.Request, folder: Path, clicked_N: NDArray[Any], rows: int) -> None:
    from tzrec import main as runner  # type: ignore[import-not-found]
    from tzrec.constant import Mode  # type: ignore[import-not-found]

    whole_loop, create_pipeline = runner._train_and_evaluate, runner.create_train_pipeline

    def measured(model: Any, optimizer: Any, batches: Any, *given: Any, **named: Any) -> None:
        named["ckpt_manager"].maybe_save = lambda *_args, **_named: False  # not counted for any trainer
        of_workers = 0.0

        def loop_once() -> None:
            nonlocal of_workers
            whole_loop(model, optimizer, batches, *given, **named)
            for child in psutil.Process().children(recursive=True):
                of_workers += sum(child.cpu_times()[:2])

        loop = protocol.measure(rows, loop_once)
        loop = protocol.Cost(loop.rows, loop.cpu_s + of_workers, loop.wall_s)

        ready = [batch for batch, _ in zip(batches.get_iterator(), range(request.step_batches), strict=False)]
        pipeline, waiting = create_pipeline(model, optimizer), iter(ready)

        def steps() -> None:
            for _ in ready:
                pipeline.progress(waiting)

        step = protocol.measure(len(ready) * request.batch_size, steps)
        auc = protocol.auc_of(clicked_N, _scores(model))
        protocol.report(
            loop,
            step,
            auc,
            model,
            ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy"),
            precision=request.precision,
        )

    def _scores(model: Any) -> NDArray[Any]:
        config = runner.config_util.load_pipeline_config(str(folder / "pipeline.config"))
        features = runner._create_features(list(config.feature_configs), config.data_config)
        loader = runner.create_dataloader(
            config.data_config, features, str(folder / "test.parquet"), mode=Mode.EVAL
        )
        model.eval()
        pipeline, batches, found = create_pipeline(model), loader.get_iterator(), []
        with torch.no_grad():
            while True:
                try:
                    _, predictions, _ = pipeline.progress(batches)
                except StopIteration:
                    break
                found.append(predictions["probs"].float())
        return torch.cat(found).numpy()

    runner._train_and_evaluate = measured
    runner.train_and_evaluate(str(folder / "pipeline.config"))


if __name__ == "__main__":
    main()
