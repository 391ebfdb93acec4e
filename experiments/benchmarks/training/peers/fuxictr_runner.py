"""FuxiCTR's DCN-v2 (parallel structure), trained by its own epoch loop and data loader.

The package on the index carries the layers, the base model and its training loop, but of its model zoo only
the long-sequence models; `DCNv2` below composes the package's own layers as the zoo's parallel DCNv2 does.
"""

from collections import OrderedDict
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fuxictr.features import FeatureMap  # type: ignore[import-not-found]
from fuxictr.pytorch.dataloaders import RankDataLoader  # type: ignore[import-not-found]
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block  # type: ignore[import-not-found]
from fuxictr.pytorch.models import BaseModel  # type: ignore[import-not-found]
from fuxictr.pytorch.torch_utils import seed_everything  # type: ignore[import-not-found]
from torch import Tensor, nn

from experiments.benchmarks.training.peers import protocol


class DCNv2(BaseModel):
    """Cross layers beside deep layers, concatenated, then one linear layer."""

    def __init__(self, feature_map: Any, **settings: Any) -> None:
        super().__init__(feature_map, model_id="DCNv2", gpu=-1, **settings)
        self.embedding_layer = FeatureEmbedding(feature_map, protocol.EMBEDDING_DIM)
        width = feature_map.sum_emb_out_dim()
        self.crossnet = CrossNetV2(width, protocol.CROSS_LAYERS)
        self.parallel_dnn = MLP_Block(
            input_dim=width,
            output_dim=None,
            hidden_units=list(protocol.DEEP_WIDTHS),
            hidden_activations="ReLU",
        )
        self.fc = nn.Linear(width + protocol.DEEP_WIDTHS[-1], 1)
        self.compile("adam", "binary_crossentropy", protocol.LEARNING_RATE)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        embedded_BD = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        both_BW = torch.cat([self.crossnet(embedded_BD), self.parallel_dnn(embedded_BD)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(both_BW))}


def main() -> None:
    """Train one epoch and print the outcome."""
    request = protocol.read_request()
    torch.set_num_threads(1)
    seed_everything(request.seed)
    train, test = (protocol.read_columns(request.data / f"{name}.npz") for name in (request.train, "test"))
    table_rows = protocol.read_table_rows(request.data)
    feature_map = FeatureMap("criteo_like", str(request.data))
    feature_map.labels = ["clicked"]
    feature_map.default_emb_dim = protocol.EMBEDDING_DIM
    feature_map.features = OrderedDict(
        (name, {"source": "", "type": "categorical", "vocab_size": table_rows[name], "padding_idx": 0})
        if name in table_rows
        else (name, {"source": "", "type": "numeric", "embedding_dim": 1})
        for name in train
        if name != "clicked"
    )
    feature_map.num_fields = len(feature_map.features)
    feature_map.set_column_index()
    batches, _, test_batches = RankDataLoader(
        feature_map,
        stage="both",
        train_data=str(request.data / f"{request.train}.npz"),
        test_data=str(request.data / "test.npz"),
        batch_size=request.batch_size,
        shuffle=True,
        num_workers=0,  # workers would only add processor time
    )
    with TemporaryDirectory() as folder:
        model = DCNv2(feature_map, model_root=folder, metrics=["AUC"], verbose=0)
        # What `fit` sets before its first epoch; the evaluation and checkpoint after it are left out.
        model._max_gradient_norm = 10.0
        model._total_steps = 0
        model._eval_steps = len(batches) + 1
        model._stop_training = False
        rows = len(train["clicked"])
        loop = protocol.measure(rows, lambda: model.train_epoch(batches))

        model.eval()
        with torch.no_grad():
            scores_N = torch.cat([model(batch)["y_pred"] for batch in test_batches]).numpy().ravel()
        auc = protocol.auc_of(test["clicked"], scores_N)

        ready = [batch for batch, _ in zip(batches, range(request.step_batches), strict=False)]

        def steps() -> None:
            model.train()
            for batch in ready:
                model.train_step(batch).item()

        step = protocol.measure(sum(len(batch["clicked"]) for batch in ready), steps)
        protocol.report(loop, step, auc, model, ("fuxictr", "torch", "numpy"))


if __name__ == "__main__":
    main()
