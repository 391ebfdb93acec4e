"""torchrec's own `DLRM_DCN`, trained as torchrec's example trains it: DistributedModelParallel, Adagrad.

Like the example (https://github.com/facebookresearch/dlrm, torchrec_dlrm) it sends the numbers through a
small network, has low-rank cross layers and stacks the deep layers on them. The rank is half of the width, so
that a cross layer costs as much as a full one, and the small network is one layer: the operations for a row
are those of the others to 2 %.
"""

import warnings
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM_DCN, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from experiments.benchmarks.training.peers import protocol

#: Of the example's runs with Adagrad.
LEARNING_RATE, EPSILON = 0.005, 1e-8


class Batch:
    """What `DLRMTrain` reads of a batch of torchrec's data sets."""

    def __init__(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor, labels: Tensor) -> None:
        self.dense_features, self.sparse_features, self.labels = dense_features, sparse_features, labels


class Columns:
    """Rows in memory, as matrices; batches of them in any order."""

    def __init__(self, columns: dict[str, NDArray[Any]], sparse: list[str]) -> None:
        self.sparse = sparse
        self.clicked_N = columns["clicked"].astype(np.float32)
        dense = [name for name in columns if name not in (*sparse, "clicked")]
        self.dense_NF = np.stack([columns[name] for name in dense], axis=1).astype(np.float32)
        self.ids_NS = np.stack([columns[name] for name in sparse], axis=1)

    def batches(self, order_N: NDArray[np.int64], size: int) -> Iterator[Batch]:
        for start in range(0, len(order_N), size):
            rows_B = order_N[start : start + size]
            values = torch.from_numpy(np.ascontiguousarray(self.ids_NS[rows_B].T)).long()
            lengths = torch.ones(values.numel(), dtype=torch.int32)
            yield Batch(
                torch.from_numpy(self.dense_NF[rows_B]),
                KeyedJaggedTensor(self.sparse, values.reshape(-1), lengths=lengths),
                torch.from_numpy(self.clicked_N[rows_B]),
            )


def build(table_rows: dict[str, int], dense_features: int) -> tuple[Any, CombinedOptimizer]:
    """The model behind DistributedModelParallel and its optimizers."""
    dim = protocol.EMBEDDING_DIM
    width = (len(table_rows) + 1) * dim
    tables = [
        EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=rows, embedding_dim=dim)
        for name, rows in table_rows.items()
    ]
    model = DLRM_DCN(
        EmbeddingBagCollection(tables=tables, device=torch.device("meta")),
        dense_in_features=dense_features,
        dense_arch_layer_sizes=[dim],
        over_arch_layer_sizes=[*protocol.DEEP_WIDTHS, 1],
        dcn_num_layers=protocol.CROSS_LAYERS,
        dcn_low_rank_dim=width // 2,
    )
    apply_optimizer_in_backward(
        RowWiseAdagrad, model.sparse_arch.parameters(), {"lr": LEARNING_RATE, "eps": EPSILON}
    )
    parallel = DistributedModelParallel(DLRMTrain(model), device=torch.device("cpu"))
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(parallel.named_parameters())),
        lambda parameters: torch.optim.Adagrad(parameters, lr=LEARNING_RATE, eps=EPSILON),
    )
    return parallel, CombinedOptimizer([parallel.fused_optimizer, dense])


def main() -> None:
    """Train one epoch and print the outcome."""
    warnings.simplefilter("ignore")
    request = protocol.read_request()
    torch.set_num_threads(1)
    torch.manual_seed(request.seed)
    table_rows = protocol.read_table_rows(request.data)
    train, test = (
        Columns(protocol.read_columns(request.data / f"{name}.npz"), list(table_rows))
        for name in (request.train, "test")
    )
    generator = np.random.default_rng(request.seed)
    with TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1)
        model, optimizer = build(table_rows, train.dense_NF.shape[1])

        def take(batch: Batch) -> None:
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.backward()
            optimizer.step()

        def epoch() -> None:
            model.train()
            for batch in train.batches(generator.permutation(len(train.clicked_N)), request.batch_size):
                take(batch)

        loop = protocol.measure(len(train.clicked_N), epoch)
        model.eval()
        with torch.no_grad():
            scored = test.batches(np.arange(len(test.clicked_N)), request.batch_size)
            scores_N = torch.cat([model(batch)[1][1] for batch in scored]).numpy()
        auc = protocol.auc_of(test.clicked_N, scores_N)

        rows = np.arange(min(len(train.clicked_N), request.step_batches * request.batch_size))
        ready = list(train.batches(rows, request.batch_size))
        model.train()

        def steps() -> None:
            for batch in ready:
                take(batch)

        step = protocol.measure(len(rows), steps)
        protocol.report(loop, step, auc, model, ("torchrec", "fbgemm-gpu-cpu", "torch", "numpy"))
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
