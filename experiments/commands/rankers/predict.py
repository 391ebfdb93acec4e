"""`dashclip predict`: probabilities of impressions by a trained run."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.options import DATA_OF_RUN, DEVICE


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    impressions: Annotated[
        Path,
        typer.Argument(
            help="Parquet, CSV or TSV: impression_id, timestamp, user_id, product_id, and what features read."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="impression_id and probability, in their order; .parquet, .csv or .tsv.")
    ],
    data: DATA_OF_RUN = None,
    device: DEVICE = "cpu",
) -> None:
    """Predict which impressions are clicked, from features as the run's training had them.

    Impressions are of the run's test days or later. Those of its test split get exactly the run's own
    predictions. Others are put beside the log, and see what it knew before them; clicks among them count for
    later ones if the column `clicked` says so.

    Example: `dashclip predict runs/demo/dcn/seed-1 tomorrow.csv predicted.csv`
    """
    import pyarrow as pa
    import torch

    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.scoring.impressions import NEEDED, predict_impressions
    from experiments.scoring.rows import read_rows, write_rows

    console = Console()
    rows = read_rows(impressions, needs=NEEDED)
    with progress_bars(console) as bars:
        probability_N = predict_impressions(run, rows, data=data, device=torch.device(device), progress=bars)
    write_rows(
        pa.table({"impression_id": rows["impression_id"], "probability": pa.array(probability_N)}), out
    )
    console.print(
        f"{len(rows):,} impressions, {probability_N.mean():.2%} clicks expected; wrote {out}",
        markup=False,
        soft_wrap=True,
    )
