"""A project folder: three configs that fit a data folder, and a README of the commands to run, in order."""

import os
import shlex
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from experiments.config import parse_config
from experiments.encoders.config import EncodersConfig
from experiments.projects.configs import (
    Drafted,
    ProjectSize,
    draft_encoders,
    draft_features,
    draft_sweep,
    has_grades,
    tested_days,
    trains_encoders,
)
from experiments.projects.estimates import MOST_PRODUCTS, Estimates
from experiments.projects.survey import Survey
from experiments.projects.written import written
from experiments.statistics.power import expected_sentence
from experiments.sweeps.sweep import SweepConfig
from features.artifacts import atomic_write_bytes
from features.schema import FeatureConfig

README, FEATURES, ENCODERS, SWEEP = "README.md", "features.toml", "encoders.toml", "sweep.toml"
_MODELS: dict[str, type[BaseModel]] = {
    FEATURES: FeatureConfig,
    ENCODERS: EncodersConfig,
    SWEEP: SweepConfig,
}
_HEADINGS = {
    FEATURES: "Features of an impression, for `dashclip features build`.",
    ENCODERS: "How encoders are trained and what they read, for `dashclip encode`.",
    SWEEP: "Rankers to compare, for `dashclip sweep`. Paths start at this folder.",
}


class Measure(Protocol):
    """Says how long the jobs of a project may take; None where that cannot be said."""

    def __call__(
        self,
        survey: Survey,
        *,
        features: FeatureConfig | None,
        sweep: dict[str, Any] | None,
        encoders: EncodersConfig | None,
    ) -> Estimates | None: ...


def write_project(survey: Survey, out: Path, *, size: ProjectSize, measure: Measure | None) -> list[Path]:
    """Write the project of a survey to `out`, whole or not at all; returns its files.

    Args:
        measure: says how long the jobs may take; None leaves the estimates out.

    Raises:
        FileExistsError: `out` holds one of these files already.
        ValueError: there is no log and nothing to train encoders on, nobody clicked, or no test can be cut
            from the log.
    """
    drafts = draft_project(survey, out, size)
    taken = [name for name in (*drafts, README) if (out / name).exists()]
    if taken:
        raise FileExistsError(
            f"{out} holds {', '.join(taken)} already, which may be yours; choose another folder, or move "
            f"{'it' if len(taken) == 1 else 'them'} away"
        )
    texts = {name: written(draft, _HEADINGS[name]) for name, draft in drafts.items()}
    for name, draft in drafts.items():
        parse_config(draft.content, _MODELS[name], where=name)
    estimates = None
    if measure:
        encoders = EncodersConfig.model_validate(drafts[ENCODERS].content)
        features = FeatureConfig.model_validate(drafts[FEATURES].content) if FEATURES in drafts else None
        sweep = drafts[SWEEP].content if SWEEP in drafts else None
        estimates = measure(survey, features=features, sweep=sweep, encoders=encoders)
    texts[README] = readme(survey, out, drafts, estimates)
    for name, text in texts.items():
        atomic_write_bytes(out / name, text.encode())
    return [out / name for name in texts]


def _from(out: Path, path: Path) -> str:
    """The path as seen from the project, so that both can be moved together."""
    return os.path.relpath(path.resolve(), out.resolve())


def draft_project(survey: Survey, out: Path, size: ProjectSize) -> dict[str, Drafted]:
    """The configs that the data call for, by file name.

    Raises:
        ValueError: there is nothing to do with the data, or no test can be cut from the log.
    """
    drafts = {ENCODERS: draft_encoders(survey, size)}
    if survey.impressions:
        if not 0 < survey.clicks < survey.impressions:
            which = "none" if survey.clicks == 0 else "all"
            raise ValueError(
                f"{which} of the {survey.impressions:,} impressions of {survey.data} were clicked, so no "
                "ranker can learn from them; check the column `clicked`"
            )
        truth = _from(out, survey.data / "truth")
        drafts |= {FEATURES: draft_features(survey), SWEEP: draft_sweep(survey, size, truth=truth)}
        if drafts[FEATURES].content["split"]["method"] == "per_user" and not survey.users:
            raise ValueError(
                f"the log of {survey.data} covers {survey.days} day{'s' if survey.days > 1 else ''} and "
                "names no users, so it can be cut neither by days nor by users; export at least 3 days, or "
                "user ids"
            )
    elif not trains_encoders(survey):
        raise ValueError(
            f"{survey.data} has no impressions to rank, and neither images nor enough grades to train "
            "encoders on; add one of them"
        )
    return drafts


def commands(survey: Survey, out: Path, drafts: dict[str, Drafted]) -> list[tuple[str, str]]:
    """What to run in `out`, in order: each command and what it does."""
    data = shlex.quote(_from(out, survey.data))
    found = [(f"dashclip validate {data} --out runs/checked", "every row against named rules")]
    if FEATURES in drafts:
        found.append(
            (
                f"dashclip features build {data} runs/features --config {FEATURES}",
                "what was known before each impression",
            )
        )
        found.append((f"dashclip embed lsa {data} runs/lsa", "vectors without training, to compare with"))
        if survey.queries:
            found.append((f"dashclip embed tfidf {data} runs/tfidf", "the lexical cosine of query and title"))
    found += _encoder_commands(survey, data)
    if SWEEP in drafts:
        names = drafts[SWEEP].content["variants"]
        best = next(name for name in ("dcn_history_tiers", "dcn_vectors") if name in names)
        run = f"runs/sweep/{best}/seed-1"
        query = " --encoder runs/encoders/align" if survey.queries and has_grades(survey) else ""
        found += [
            (f"dashclip sweep {SWEEP} runs/sweep", "table 2: runs/sweep/report.html"),
            (f"dashclip package {run} runs/package --data {data}{query}", "what a server opens"),
            (f"dashclip replay {run} runs/package --data {data}", "served scores equal offline ones"),
        ]
    return found


def _encoder_commands(survey: Survey, data: str) -> list[tuple[str, str]]:
    if not trains_encoders(survey):
        return []
    found = []
    start, encoder = "", "runs/encoders/pretrain"
    if survey.has_images:
        stage_1 = f"dashclip encode pretrain {data} {encoder} --config {ENCODERS}"
        found.append((stage_1, "stage 1"))
        start = f" --start {encoder}"
    if has_grades(survey):
        encoder = "runs/encoders/align"
        stage_2 = f"dashclip encode align {data} {encoder}{start} --config {ENCODERS}"
        found.append((stage_2, "stage 2"))
    found.append(
        (
            f"dashclip encode run {data} {encoder} runs/encoders/tables --config {ENCODERS}",
            "vectors of all products and queries",
        )
    )
    row = "runs/encoders/tables" if has_grades(survey) else encoder
    found.append(
        (
            f"dashclip encode evaluate {data} runs/encoders --config {ENCODERS} --row dashclip={row}",
            "table 1" if has_grades(survey) else "which image belongs to a title",
        )
    )
    found.append(
        (
            f"dashclip report runs/encoders --data {data}",
            "what encoders have learned and find: runs/encoders/report.html",
        )
    )
    return found


def readme(survey: Survey, out: Path, drafts: dict[str, Drafted], estimates: Estimates | None) -> str:
    """The page that leads through the project."""
    lines = ["# A first project", "", f"Written by `dashclip init` for `{survey.data}`. What is there:", ""]
    lines += [f"- {sentence}" for sentence in findings(survey)]
    lines += ["", "Run in this folder, one after the other; each continues where it was stopped:", "", "```"]
    told = commands(survey, out, drafts)
    for command, meaning in told:
        lines += [f"# {meaning}", command]
    lines += ["```", ""]
    lines += _estimate_lines(survey, estimates)
    lines += ["## Then", ""]
    if SWEEP in drafts:
        lines += [
            "- `dashclip serve runs/package --fastapi --port 8000` answers requests on this machine.",
            "- `dashclip importance runs/sweep/VARIANT` says which features matter.",
        ]
    if not trains_encoders(survey):
        lines += [
            "- Published text weights need no training: `dashclip encode from-bert MODEL runs/bert`, then "
            f"`dashclip encode run DATA runs/bert runs/encoders/tables --config {ENCODERS}`, and "
            f"`runs/encoders/tables` for `runs/lsa` in {SWEEP}.",
        ]
    lines += ["- `dashclip config explain KEY` says what a key of the three configs means.", ""]
    return "\n".join(lines)


def findings(survey: Survey) -> list[str]:
    """What the data hold and lack, one sentence each."""
    said = [f"{survey.products:,} products in {survey.aisles:,} aisles"]
    if survey.has_images:
        said.append(
            f"{survey.images:,} images ({survey.readable_images} of {survey.images_tried} tried can be read)"
        )
    elif survey.images:
        said.append(
            f"{survey.images:,} images are named, but of {survey.images_tried} tried only "
            f"{survey.readable_images} can be read: encoders read titles alone"
        )
    else:
        said.append("no images: encoders read titles alone")
    if survey.impressions:
        said.append(
            f"{survey.impressions:,} impressions of {survey.users:,} users on {survey.days:,} days "
            f"({survey.first_day} to {survey.last_day}), {survey.clicks:,} clicked "
            f"({survey.clicks / survey.impressions:.1%})"
        )
        test = tested_days(survey)
        if test:
            shown, clicked = (sum(column) for column in zip(*test, strict=True))
            said.append(f"the last {len(test)} days are the test: {expected_sentence(clicked, shown)}")
        if survey.anonymous:
            said.append(
                f"{survey.anonymous:,} impressions without a user: no history and no counters of a user for "
                "them"
            )
        said.append(
            f"{survey.queries:,} distinct queries"
            if survey.queries
            else "no queries: no features of the query, vectors of products alone"
        )
        said.append(
            f"{survey.purchases:,} purchases of {survey.buyers:,} users"
            if survey.purchases
            else "no purchases: no history variants"
        )
    else:
        said.append("no impressions: encoders only, no rankers")
    if has_grades(survey):
        sources = ", ".join(f"{name} {count:,}" for name, count in survey.sources.items())
        said.append(f"{survey.graded_pairs:,} graded pairs of {survey.graded_queries:,} queries ({sources})")
    elif survey.has_images:
        said.append("no or too few grades: encoders stop after stage 1")
    else:
        said.append("no or too few grades and no images: LSA vectors, no encoders are trained")
    return said


def _estimate_lines(survey: Survey, estimates: Estimates | None) -> list[str]:
    if estimates is None:
        return []
    said = "An estimate for this machine as it was when this page was written."
    if estimates.sample:
        said += (
            f" What reads the log was measured on {estimates.sample:,} impressions "
            f"({estimates.share:.0%} of all) and scaled up by their number."
        )
    if any(name.startswith("encoders") for name in estimates.seconds):
        said += (
            " Encoders were timed over a few steps; their trainings may stop before the last one, and "
            "whitening and completion come on top."
        )
    elif trains_encoders(survey):
        said += (
            f" Encoders of more than {MOST_PRODUCTS:,} products are not timed here: their commands show how "
            "long they have to go."
        )
    return [
        "## What it may take",
        "",
        said,
        "",
        "| Job | Minutes |",
        "|---|---:|",
        *(f"| {name} | {minutes(seconds)} |" for name, seconds in estimates.seconds.items()),
        "",
        f"Memory meanwhile: {estimates.peak_bytes / 2**30:.1f} GiB at most, of one process. "
        "`dashclip sweep` runs one process a core.",
        "",
    ]


def minutes(seconds: float) -> str:
    """As "0.4" or "12"; "under 0.1" below that."""
    if seconds < 6:
        return "under 0.1"
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:,.0f}"
