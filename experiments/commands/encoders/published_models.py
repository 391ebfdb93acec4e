"""`dashclip encode` with the weights of others: BLIP and BERT to start from, CLIP, BLIP and FLAVA as rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.encoders.encode import encode, print_text_weights
from experiments.commands.options import DATA, DEVICE

if TYPE_CHECKING:
    pass


@encode.command("import-blip")
def import_blip_command(
    checkpoint: Annotated[
        str, typer.Argument(help="Original BLIP `.pth`, a Hugging Face folder, or a name on the hub.")
    ],
    out: Annotated[Path, typer.Argument(help="Encoder folder to write.")],
    vocabulary: Annotated[
        Path | None, typer.Option(help="BERT's vocab.txt or tokenizer.json; needed for a `.pth`.")
    ] = None,
) -> None:
    """Turn published BLIP weights into an encoder that stage 1 can start from; no weight stays random.

    Example: `dashclip encode import-blip model_base_14M.pth runs/blip --vocabulary vocab.txt`
    """
    from embeddings.encoders.blip_checkpoint import encoder_from_checkpoint
    from experiments.runtime.terminal import Console

    encoder = encoder_from_checkpoint(checkpoint, out, vocabulary=vocabulary)
    Console().print(f"{encoder.encoder_id} in {out}", soft_wrap=True)


@encode.command("from-bert")
def from_bert_command(
    model: Annotated[
        str, typer.Argument(help="Folder of an uncased BERT, MiniLM, bge, e5 or gte; or `all-minilm-l6-v2`.")
    ],
    out: Annotated[Path, typer.Argument(help="Encoder folder to write.")],
    pooling: Annotated[
        Literal["auto", "mean", "cls"], typer.Option(help="`auto`: what sentence-transformers' files say.")
    ] = "auto",
    query_prefix: Annotated[
        str | None,
        typer.Option(help="Goes before each query, as 'query: ' of e5; if not, what the files say."),
    ] = None,
    title_prefix: Annotated[
        str | None, typer.Option(help="Goes before each title, as 'passage: ' of e5.")
    ] = None,
    config: Annotated[
        Path, typer.Option(help="Encoder config whose size, image side and cuts are taken.")
    ] = Path("encoders_small"),
) -> None:
    """Turn published text weights into an encoder: its vectors of queries and titles are those of the model.

    The image side has no published weights and begins at random; until it is trained a product is its title.

    Example: `dashclip encode from-bert models/bge-small-en-v1.5 runs/bge`
    """
    from experiments.config import load_config
    from experiments.encoders.config import EncodersConfig
    from experiments.encoders.first_encoder import bert_encoder
    from experiments.runtime.terminal import Console

    given = {"query_prefix": query_prefix, "title_prefix": title_prefix}
    encoder = bert_encoder(
        model,
        load_config(config, EncodersConfig),
        pooling=None if pooling == "auto" else pooling,
        **{name: text for name, text in given.items() if text is not None},
    )
    assert encoder.trained_on is not None
    saved = encoder.save(out, stage="initial", trained_on=encoder.trained_on)
    console = Console()
    console.print(f"{saved.encoder_id} in {out}", soft_wrap=True)
    print_text_weights(console, saved)


@encode.command("off-the-shelf")
def off_the_shelf_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for `products/` and `queries/`.")],
    kind: Annotated[Literal["clip", "blip", "flava"], typer.Option(help="Which model it is.")],
    checkpoint: Annotated[str, typer.Option(help="Hugging Face folder or name on the hub.")],
    modality: Annotated[
        Literal["image", "text"], typer.Option(help="What stands for a product: its image or its title.")
    ] = "image",
    device: DEVICE = "cpu",
) -> None:
    """Tables of CLIP, BLIP or FLAVA as published: the off-the-shelf rows of table 1.

    Example: `dashclip encode off-the-shelf DATA OUT --kind clip --checkpoint openai/clip-vit-base-patch32`
    """
    from embeddings.tables.off_the_shelf import embed_off_the_shelf
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    with progress_bars(console) as bars:
        tables = embed_off_the_shelf(
            kind, checkpoint, data, out, modality=modality, device=device, progress=bars
        )
    console.print(
        f"{len(tables.products):,} products in {tables.products.folder}; "
        f"{tables.products_without_input:,} have no {modality}",
        soft_wrap=True,
    )
