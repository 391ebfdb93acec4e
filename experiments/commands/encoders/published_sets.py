"""`dashclip encode home-depot`, `grocery-store` and `publish`: the encoders on real data."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.encoders.encode import encode
from experiments.commands.options import CONFIG, DEVICE, PUBLISHED_NAME, PUBLISHED_RESULTS, named_folders

DATA = Annotated[Path, typer.Argument(help="Folder that `dashclip import` wrote.")]
OUT = Annotated[
    Path,
    typer.Argument(help="Folder for runs, tables and results; a stopped call continues, finished runs stay."),
]


@encode.command("home-depot")
def home_depot_command(
    data: DATA,
    out: OUT,
    config: CONFIG = Path("encoders_home_depot"),
    row: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER with `products/` and `queries/` to compare as well; repeat it."),
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL as `encode from-bert` takes it: published text weights as they are and aligned, "
            "rows NAME_zero_shot and NAME_aligned; repeat it."
        ),
    ] = None,
    published_config: Annotated[Path, typer.Option(help="How those are aligned.")] = Path(
        "encoders_home_depot_published"
    ),
    only_published: Annotated[
        bool, typer.Option("--only-published", help="Train nothing from scratch; no row `dashclip`.")
    ] = False,
    device: DEVICE = "cpu",
) -> None:
    """**Home Depot**: train text-only encoders on human grades, measure relevance on unseen queries.

    Text warm-up and stage 2 from scratch; then AUC of high against irrelevant pairs and macro F1 of the three
    grades, beside lexical scores and LSA, to OUT/results.json and OUT/results.md. `--only-published` leaves
    the training from scratch out; the same command without it adds its rows later.

    Example: `dashclip encode home-depot DATA runs/home_depot --published minilm=all-minilm-l6-v2`
    """
    from rich.markdown import Markdown

    from experiments.config import load_config
    from experiments.datasets.encoder_runs import measure_home_depot, published_rows, write_results
    from experiments.datasets.home_depot_relevance import to_markdown
    from experiments.encoders.config import EncodersConfig
    from experiments.encoders.first_encoder import first_encoder
    from experiments.encoders.pipeline import run_align
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    settings = load_config(config, EncodersConfig)
    rows = named_folders(row or [])
    models = named_folders(published or [], option="--published", what="MODEL")
    if only_published and not models:
        raise typer.BadParameter("name the weights by --published NAME=MODEL", param_hint="--only-published")
    tuned = load_config(published_config, EncodersConfig) if models else settings
    for name, model in models.items():
        with progress_bars(console) as bars:
            rows |= published_rows(data, out / name, name, str(model), tuned, device=device, bars=bars)
    encoder = None
    if only_published:
        settings = tuned  # of which the hold-out alone is read
    else:
        with progress_bars(console) as bars:
            start = partial(first_encoder, data, out / "warmup", settings, device=device, show=bars.training)
            align = run_align(data, out / "align", settings, start=start, device=device, show=bars.training)
        encoder = align.encoder
    with progress_bars(console) as bars:
        results = measure_home_depot(data, out, encoder, settings, rows=rows, device=device, progress=bars)
    page = to_markdown(results)
    command = ["dashclip encode home-depot DATA OUT"]
    if not only_published:
        command.append(f"--config {config.name}")
    command += [f"--published {name}={Path(model).name}" for name, model in models.items()]
    if models:
        command.append(f"--published-config {published_config.name}")
    if only_published:
        command.append("--only-published")
    write_results(out, results, page, command=" ".join(command))
    console.print(Markdown(page))
    console.print(f"written: {out / 'results.json'}, {out / 'results.md'}", soft_wrap=True)


@encode.command("grocery-store")
def grocery_store_command(
    data: DATA,
    out: OUT,
    config: CONFIG = Path("encoders_grocery_store"),
    start: Annotated[
        str | None,
        typer.Option(
            help="Published text weights, as `encode from-bert` takes them, instead of the text warm-up."
        ),
    ] = None,
    device: DEVICE = "cpu",
) -> None:
    """**Grocery Store**: train on the train photos, measure frozen vectors on the test photos.

    Warm-ups, and stage 1 if the config has one; linear probes on image-only vectors for the fine and the
    coarse classes, and which description belongs to a photo, beside floors and the encoder before training,
    to OUT/results.json and OUT/results.md. There are no grades, hence no stage 2.

    Example: `dashclip encode grocery-store runs/grocery_store/data runs/grocery_store`
    """
    from rich.markdown import Markdown

    from experiments.config import load_config
    from experiments.datasets.encoder_runs import (
        DASHCLIP,
        UNTRAINED,
        WARMED_UP,
        measure_grocery_store,
        photos_of,
        write_results,
    )
    from experiments.datasets.grocery_store_photos import to_markdown
    from experiments.encoders.config import EncodersConfig
    from experiments.encoders.first_encoder import bert_encoder, first_encoder
    from experiments.encoders.pipeline import run_pretrain
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    settings = load_config(config, EncodersConfig)
    seen = photos_of(data, out / "train_photos", split="train")
    published = bert_encoder(start, settings) if start else None
    cold = settings.model_copy(update={"warmup": None, "image_warmup": None})
    first = replace(first_encoder(seen, out, cold, published=published), query=None)
    encoders = {UNTRAINED: first.save(out / "untrained", stage="initial", trained_on=first.trained_on or {})}
    if settings.warmup is not None or settings.image_warmup is not None:
        with progress_bars(console) as bars:
            first = first_encoder(
                seen, out / "warmup", settings, published=published, device=device, show=bars.training
            )
        encoders[WARMED_UP] = first
    if settings.pretrain is not None:
        with progress_bars(console) as bars:
            run = run_pretrain(
                seen, out / "pretrain", settings, start=first, device=device, show=bars.training
            )
        encoders[DASHCLIP] = run.encoder
    with progress_bars(console) as bars:
        results = measure_grocery_store(
            data,
            out,
            encoders,
            settings,
            device=device,
            progress=bars,
        )
    page = to_markdown(results)
    write_results(
        out,
        results,
        page,
        command=f"dashclip encode grocery-store DATA OUT --config {config.name}"
        + (f" --start {Path(start).name}" if start else ""),
    )
    console.print(Markdown(page))
    console.print(f"written: {out / 'results.json'}, {out / 'results.md'}", soft_wrap=True)


@encode.command("publish", hidden=True)
def publish_command(
    run: Annotated[Path, typer.Argument(help="OUT of `encode home-depot` or `encode grocery-store`.")],
    name: PUBLISHED_NAME,
    results: PUBLISHED_RESULTS = Path("experiments/results"),
) -> None:
    """Copy the results on real data into the repository.

    Example: `dashclip encode publish runs/home_depot home_depot`
    """
    from experiments.datasets.encoder_runs import publish_results
    from experiments.runtime.terminal import Console

    for path in publish_results(run, name, results=results):
        Console().print(f"wrote {path}", highlight=False)
