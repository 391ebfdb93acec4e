"""`dashclip grade run` and what comes after it: batches, people's turn, and the graded data folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.encoders.grade import HOLDOUT, open_prompt
from experiments.commands.encoders.grade import grade as grade  # it is complete only here
from experiments.commands.options import DATA, DEVICE

if TYPE_CHECKING:
    from embeddings.grading.graders import Grader
    from embeddings.grading.language_models.prompt import Prompt
    from embeddings.grading.pairs import Pairs

RUN = Annotated[
    Path, typer.Argument(help="Folder of grades; a stopped call continues, nothing is graded twice.")
]
PROMPT = Annotated[Path | None, typer.Option(help="Prompt file of a language model.")]
EXAMPLES = Annotated[
    Path | None, typer.Option(help="Data folder of people's grades, where the prompt adds the nearest ones.")
]
MODEL = Annotated[str | None, typer.Option(help="Name of the model behind the endpoint or batch service.")]


@grade.command("run")
def run_command(
    pairs: Annotated[Path, typer.Argument(help="Pairs that `grade pairs` wrote.")],
    out: RUN,
    grader: Annotated[Path | None, typer.Option(help="Folder of a trained grader.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server, with /v1.")
    ] = None,
    batch_file: Annotated[
        bool, typer.Option("--batch-file", help="Write requests for a batch service instead of asking.")
    ] = False,
    local_model: Annotated[
        Path | None, typer.Option(help="Folder of a causal language model that transformers can open.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs that a local model reads at a time.")] = 32,
    device: DEVICE = "cpu",
    model: MODEL = None,
    prompt: PROMPT = None,
    examples: EXAMPLES = None,
    config: HOLDOUT = None,
    secret_from: Annotated[
        str | None, typer.Option(help="Environment variable that holds the server's secret.")
    ] = None,
    at_a_time: Annotated[int, typer.Option(help="Requests under way at once.")] = 8,
    per_minute: Annotated[float | None, typer.Option(help="Most requests a minute.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 60.0,
    shard: Annotated[int, typer.Option(help="Pairs written at a time; what a kill can lose.")] = 2000,
    price: Annotated[
        float, typer.Option(help="Money for a million tokens, for the estimate and the limit.")
    ] = 0.0,
    limit_cost: Annotated[float | None, typer.Option(help="Stop before more than this is spent.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked and cost; ask nothing.")
    ] = False,
) -> None:
    """Grade pairs into a table of relevance; killed anywhere, the same command continues.

    One of `--grader FOLDER`, `--endpoint URL --model NAME --prompt FILE`,
    `--batch-file --model NAME --prompt FILE` or `--local-model FOLDER --prompt FILE`. OUT/grading.log keeps
    the progress.

    Example: `dashclip grade run runs/pairs.parquet runs/graded --grader runs/graders/stack`
    """
    from embeddings.grading.language_models.batch_file import BatchGrader, write_batch
    from embeddings.grading.pairs import GradingError
    from embeddings.grading.run import Price, open_run, plan_run, run_grader
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    if sum((grader is not None, endpoint is not None, batch_file, local_model is not None)) != 1:
        raise GradingError(
            "name one grader: --grader FOLDER, --endpoint URL, --batch-file or --local-model FOLDER"
        )
    _refuse_unused(config, examples)
    wanted = _read_pairs(pairs)
    asked: Grader
    characters = 0
    if grader is not None:
        from embeddings.grading.answers import open_trained

        asked = open_trained(grader, device=device)
    elif local_model is not None:
        from embeddings.grading.language_models.local_model import LocalGrader

        question = _prompt_of(prompt, examples, config, needs="--prompt FILE (`dashclip grade prompt`)")
        characters = question.shared_characters()
        asked = LocalGrader.load(local_model, question, batch_size=batch_size, device=device)
    else:
        question, name = _question(prompt, model, examples, config)
        characters = question.shared_characters()
        asked = (
            BatchGrader(name, question)
            if batch_file
            else _endpoint(endpoint or "", name, question, secret_from, at_a_time, per_minute, timeout_s)
        )
    costs = Price(per_million_tokens=price)
    plan = plan_run(wanted, out, asked, price=costs, prompt_characters=characters)
    typer.echo(
        f"{asked.name}: {plan.pairs:,} pairs, {plan.done:,} graded before, {plan.todo:,} to grade"
        + (f", about {plan.tokens:,} tokens, cost about {plan.cost:.2f}" if asked.prompt_sha else "")
    )
    if dry_run:
        return
    if batch_file:
        if limit_cost is not None and plan.cost > limit_cost:
            raise GradingError(
                f"all requests would cost about {plan.cost:.2f}, above the limit {limit_cost:g}"
            )
        files, requests = write_batch(wanted, out, asked)  # type: ignore[arg-type]  # it is a BatchGrader here
        for path in files:
            typer.echo(str(path))
        typer.echo(f"{requests:,} requests; have them answered, then `dashclip grade collect {out} RESULTS`")
        return
    open_run(out, asked.name, asked.prompt_sha)
    with progress_bars(Console(), log=out / "grading.log") as bars:
        manifest = run_grader(
            wanted,
            out,
            asked,
            price=costs,
            cost_limit=limit_cost,
            shard_pairs=shard,
            prompt_characters=characters,
            progress=bars,
        )
    typer.echo(
        f"{manifest.graded:,} of {manifest.pairs:,} pairs have a grade in {out / 'relevance'}"
        + (
            f", {manifest.unanswered:,} got no answer; run again to ask for these"
            if manifest.unanswered
            else ""
        )
        + (f"; {manifest.tokens:,} tokens, cost {costs.cost(manifest.tokens):.2f}" if manifest.tokens else "")
    )
    if manifest.remarks:
        typer.echo(manifest.remarks)


@grade.command("collect")
def collect_command(
    out: RUN,
    results: Annotated[list[Path], typer.Argument(help="Result files of the batch service.")],
    model: MODEL = None,
    prompt: PROMPT = None,
    examples: EXAMPLES = None,
    config: HOLDOUT = None,
) -> None:
    """Read the answers of a batch; what lacks one stands in new request files.

    Example: `dashclip grade collect runs/graded results.jsonl --model my-model --prompt runs/prompt.toml`
    """
    from embeddings.grading.language_models.batch_file import BatchGrader, collect

    _refuse_unused(config, examples)
    question, name = _question(prompt, model, examples, config)
    found = collect(out, results, BatchGrader(name, question))
    troubles = ", ".join(
        f"{key.replace('_', ' ')} {count:,}" for key, count in sorted(found.problems.items())
    )
    typer.echo(f"{found.graded:,} pairs have a grade, {found.still_missing:,} have none yet")
    if troubles:
        typer.echo(f"met on the way: {troubles}")
    for path in found.retry:
        typer.echo(f"ask again: {path}")


@grade.command("queue")
def queue_command(
    out: RUN,
    pairs: Annotated[Path, typer.Argument(help="Pairs that `grade pairs` wrote, with their volume.")],
    csv: Annotated[Path, typer.Argument(help="CSV file for people, with an empty column `grade`.")],
    count: Annotated[int, typer.Option("--n", help="Pairs to ask people for.")] = 500,
) -> None:
    """Write the pairs that people should grade next: uncertain ones of often-searched queries.

    Example: `dashclip grade queue runs/graded runs/pairs.parquet runs/queue.csv --n 300`
    """
    from embeddings.grading.people import write_queue

    written = write_queue(out, pairs, csv, count=count)
    typer.echo(f"{written:,} pairs in {csv}; fill in `grade` with 0, 1 or 2, then `dashclip grade import`")


@grade.command("import")
def import_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Data folder to write: DATA with more grades.")],
    answers: Annotated[
        list[Path] | None, typer.Option(help="CSV files that people filled in; repeat it.")
    ] = None,
    graded: Annotated[list[Path] | None, typer.Option(help="Folders of `grade run`; repeat it.")] = None,
) -> None:
    """Write a data folder with people's answers and a model's grades beside the grades of DATA.

    Where people and a model graded the same pair, readers take the people's grade. Answers of `grade audit`
    take the place of the grades that they look at.

    Example: `dashclip grade import runs/data runs/data_graded --answers queue.csv --graded runs/graded`
    """
    from embeddings.grading.people import import_grades

    found = import_grades(data, out, answers=answers or [], runs=graded or [])
    typer.echo(
        f"{found.before:,} rows of {data}, {found.people:,} new ones of people, {found.models:,} of models "
        f"in {out}"
        + (f"; {found.corrected:,} pairs have a corrected grade" if found.corrected else "")
        + (f"; {found.left_blank:,} rows of people had no grade" if found.left_blank else "")
        + (f"; {found.known:,} were there already" if found.known else "")
    )


def _read_pairs(path: Path) -> Pairs:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from embeddings.grading.pairs import GradingError, Pairs

    try:
        content = pq.read_table(path, columns=["query", "text", "product_id"])
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise GradingError(
            f"{path} is no file of pairs (query, product_id, text): {error}; "
            "`dashclip grade pairs` writes one"
        ) from None
    ids = content.column("product_id").combine_chunks()
    return Pairs(content["query"].to_pylist(), content["text"].to_pylist(), ids)


def _refuse_unused(config: Path | None, examples: Path | None) -> None:
    from embeddings.grading.pairs import GradingError

    if config is not None and examples is None:
        raise GradingError(
            "--config says which queries may give examples, so it needs --examples DATA; give both or neither"
        )


def _question(
    path: Path | None, model: str | None, examples: Path | None, config: Path | None
) -> tuple[Prompt, str]:
    needs = "--prompt FILE (`dashclip grade prompt`) and --model NAME"
    return _prompt_of(path if model else None, examples, config, needs=needs), model or ""


def _prompt_of(path: Path | None, examples: Path | None, config: Path | None, *, needs: str) -> Prompt:
    from embeddings.grading.pairs import GradingError

    if path is None:
        raise GradingError(f"a language model needs {needs}")
    return open_prompt(path, examples, config)


def _endpoint(
    url: str,
    model: str,
    prompt: Prompt,
    secret_from: str | None,
    at_a_time: int,
    per_minute: float | None,
    timeout_s: float,
) -> Grader:
    from pydantic import ValidationError

    from embeddings.grading.language_models.endpoint import EndpointConfig, EndpointGrader
    from embeddings.grading.pairs import GradingError

    secret = None
    if secret_from is not None:
        if not os.environ.keys() & {secret_from}:
            raise GradingError(
                f"the environment has no variable {secret_from}; set it to the server's secret"
            )
        secret = os.environ[secret_from].strip()
    try:
        config = EndpointConfig(
            url=url,
            model=model,
            requests_at_a_time=at_a_time,
            requests_per_minute=per_minute,
            timeout_s=timeout_s,
        )
    except ValidationError as error:
        # Not the value: an address may hold a secret.
        first = error.errors(include_input=False, include_url=False)[0]
        raise GradingError(f"{first['loc'][0]}: {first['msg']}") from None
    return EndpointGrader(config, prompt, secret)
