"""What training starts with: an encoder from scratch through its warm-ups, or published text weights."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from embeddings.encoders.bert_checkpoint import OPEN_FIELDS, lacks_images, read_bert
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.published_weights import PUBLISHED, find_published
from embeddings.stages.run_folder import ShowReport
from embeddings.stages.runs import Start, new_encoder, warm_up
from embeddings.training.run_log import Tracker
from experiments.encoders.config import EncodersConfig


def first_encoder(
    data: Path,
    folder: Path,
    config: EncodersConfig,
    *,
    published: DashClipEncoder | None = None,
    device: str = "cpu",
    show: ShowReport | None = None,
    tracker: Tracker | None = None,
) -> DashClipEncoder:
    """What training from scratch starts with: a tokenizer learned from the data, and random weights.

    With warm-ups in the config the weights have gone through those, runs of their own in `folder`/text and
    `folder`/image. `published` has text weights already (`read_bert`), and its images alone warm up.

    Raises:
        ValueError: images are to learn from titles that nothing has understood.
    """
    if config.lacks_words and published is None:
        raise ValueError(
            "[image_warmup] needs a text encoder that knows titles: add a [warmup] section to the config, or "
            "start from published text weights"
        )
    start = published or new_encoder(
        data,
        size=config.size,
        inputs=config.inputs,
        seed=config.seed,
        vocab_size=config.vocab_size,
        architecture=config.architecture,
    )
    of_text = None if published else config.warmup
    of_images = config.image_warmup if "image" in config.modalities else None
    for name, warmup in (("text", of_text), ("image", of_images)):
        if warmup is not None:
            start = warm_up(
                data,
                folder / name,
                start=start,
                config=warmup,
                inputs=config.stage1_inputs,
                device=device,
                show=show,
                tracker=tracker,
            ).encoder
    return start


def warm_start(
    data: Path,
    folder: Path,
    config: EncodersConfig,
    start: Start | None,
    *,
    device: str,
    show: ShowReport | None,
    tracker: Tracker | None,
) -> Start:
    """`start`, or the call that makes one from scratch, or that warms up the images of published text."""
    published = start if isinstance(start, DashClipEncoder) and lacks_images(start) else None
    if start is not None and published is None:
        return start
    return partial(
        first_encoder,
        data,
        folder,
        config,
        published=published,
        device=device,
        show=show,
        tracker=tracker,
    )


def bert_encoder(model: str | Path, config: EncodersConfig, **options: Any) -> DashClipEncoder:
    """Published text weights as an encoder: a folder, or the name of a model that an installed package holds.

    Of the config it takes the size, the fields of `architecture` that the weights leave open, and the seed;
    `options` of `read_bert` go before those.

    Raises:
        PretrainedError: as `read_bert` and `find_published`.
    """
    folder, name = Path(model), str(model).lower()
    published = None if folder.exists() else PUBLISHED.get(name)
    chosen = {field: value for field, value in config.architecture.items() if field in OPEN_FIELDS}
    encoder = read_bert(
        find_published(name) if published else folder,
        size=config.size,
        seed=config.seed,
        **{**chosen, **options},
    )
    if published:
        made = {"source": published.source, "licence": published.licence}
        encoder = replace(encoder, trained_on={**(encoder.trained_on or {}), **made})
    return encoder
