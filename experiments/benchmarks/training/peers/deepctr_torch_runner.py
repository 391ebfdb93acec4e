"""DeepCTR-Torch's DCN (matrix cross layers = DCN-v2), trained by its own `fit`.

Its default L2 penalty runs over whole tables and would slow it down severalfold; all penalties are off. The
linear part is empty, as in DCN-v2.
"""

import contextlib
import io

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat  # type: ignore[import-not-found]
from deepctr_torch.models import DCN  # type: ignore[import-not-found]

from experiments.benchmarks.training.peers import protocol


def main() -> None:
    """Train one epoch and print the outcome."""
    request = protocol.read_request()
    torch.set_num_threads(1)
    train, test = (protocol.read_columns(request.data / f"{name}.npz") for name in (request.train, "test"))
    clicked_train_N, clicked_test_N = train.pop("clicked"), test.pop("clicked")
    table_rows = protocol.read_table_rows(request.data)
    columns = [DenseFeat(name, 1) for name in train if name not in table_rows]
    columns += [
        SparseFeat(name, vocabulary_size=rows, embedding_dim=protocol.EMBEDDING_DIM)
        for name, rows in table_rows.items()
    ]
    model = DCN(
        linear_feature_columns=[],
        dnn_feature_columns=columns,
        cross_num=protocol.CROSS_LAYERS,
        cross_parameterization="matrix",
        dnn_hidden_units=protocol.DEEP_WIDTHS,
        l2_reg_linear=0,
        l2_reg_embedding=0,
        l2_reg_cross=0,
        l2_reg_dnn=0,
        seed=request.seed,
    )
    model.compile("adam", "binary_crossentropy")

    def epoch() -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # `fit` prints even when it is not verbose
            model.fit(train, clicked_train_N, batch_size=request.batch_size, epochs=1, verbose=0)

    loop = protocol.measure(len(clicked_train_N), epoch)
    scores_N = model.predict(test, batch_size=request.batch_size)
    auc = protocol.auc_of(clicked_test_N, scores_N.ravel())

    order = list(model.feature_index)
    rows = min(len(clicked_train_N), request.step_batches * request.batch_size)
    stacked_NC = torch.from_numpy(np.column_stack([train[name][:rows] for name in order])).float()
    batches = list(
        zip(
            stacked_NC.split(request.batch_size),
            torch.from_numpy(clicked_train_N[:rows]).split(request.batch_size),
            strict=True,
        )
    )

    def steps() -> None:
        """The body of its `fit` loop."""
        model.train()
        for features_BC, clicked_B in batches:
            probability_B = model(features_BC).squeeze(-1)
            model.optim.zero_grad()
            loss = model.loss_func(probability_B, clicked_B, reduction="sum")
            total = loss + model.get_regularization_loss() + model.aux_loss
            loss.item()
            total.item()
            total.backward()
            model.optim.step()

    protocol.report(loop, protocol.measure(rows, steps), auc, model, ("deepctr-torch", "torch", "numpy"))


if __name__ == "__main__":
    main()
