"""How many of people's grades encoders need: people gave a share of them, a grader the rest.

OUT/data/                  the tables of DATA; relevance has further sources beside those that it had
    graders/<percent>/     the grader that learnt from that share alone
    ablation.toml          trains stage 2 on each (`dashclip encode ablate`)
    shares.json

The sources of a share of 5 %: `people_05` is that share of people's grades of train and validation queries,
`model_05` what the grader says of all of them. Test queries keep people's grades, which no arm trains on.

Shapes: N graded pairs, C = 3 grades.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from embeddings.catalog.holdout import TEST
from embeddings.grading.agreement import Graded, figures
from embeddings.grading.features import PairFeatures
from embeddings.grading.graders import GraderConfig, open_all_tables, train_grader
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError, Pairs, read_graded_pairs
from embeddings.grading.people import link_other_tables
from embeddings.grading.run import RELEVANCE
from embeddings.relevance.grades import PROBABILITIES
from experiments.config import load_config
from experiments.encoders.config import EncodersConfig
from experiments.grading.holdout import holdout_of
from features.artifacts import (
    ResultFile,
    StrictModel,
    atomic_folder,
    atomic_write_bytes,
    json_file_has,
    link_or_copy,
    refuse_foreign_folder,
    refuse_to_replace_input,
)
from features.inputs.tables import find_table
from features.progress import Progress, silent

DATA, GRADERS, ABLATION, RESULT = "data", "graders", "ablation.toml", "shares.json"
#: Pairs that people graded in a share must at least be so many, validation queries included.
LEAST_PAIRS = 100
Count = Annotated[int, Field(ge=0)]


class ShareResult(StrictModel):
    """A share of people's grades, and how the grader that learnt from it agrees with the others."""

    share: float
    people_source: str
    model_source: str
    people_pairs: Count
    model_pairs: Count
    #: Of the grader against people, on pairs of train and validation queries that it did not see.
    macro_f1: float
    qwk: float


class Shares(ResultFile):
    """`shares.json`."""

    format: Literal["label-shares-1"] = "label-shares-1"
    sources: tuple[str, ...]
    seed: Count
    #: Pairs of train and validation queries that people graded, and of test queries.
    pairs: Count
    test_pairs: Count
    shares: tuple[ShareResult, ...]


@dataclass(frozen=True)
class SharePlan:
    """What is asked for: shares in (0, 1), whose grades count as people's, and what the grader reads."""

    shares: tuple[float, ...]
    sources: tuple[str, ...] = ("human",)
    tables: Mapping[str, str] = field(default_factory=dict)
    config: str = "encoders_small"
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares:
            raise GradingError("name at least one share of people's grades, such as 0.05")
        for share in self.shares:
            if not 0 < share < 1:
                raise GradingError(f"a share must be between 0 and 1, got {share:g}; 0.05 is 5 %")
        if len({percent(share) for share in self.shares}) < len(self.shares):
            raise GradingError("two shares are the same in whole tenths of a percent; name each once")


def write_shares(data: Path, out: Path, plan: SharePlan, *, progress: Progress = silent) -> Shares:
    """Write `out`: for each share the grades of people and of a grader as sources of their own.

    Raises:
        GradingError: a share leaves too few grades, or a grade is missing among them.
        FileExistsError: `out` holds something else.
    """
    refuse_to_replace_input(out, data)
    refuse_foreign_folder(out, ours=lambda folder: json_file_has(folder / RESULT, "shares"))
    tables = {name: Path(folder) for name, folder in plan.tables.items()}
    holdout = holdout_of(Path(plan.config), tables=tables)
    catalogue = Catalogue.read(data)
    graded = read_graded_pairs(data, holdout, catalogue=catalogue, sources=plan.sources)
    known = graded.take(np.flatnonzero(graded.role_N != TEST))
    base = GraderConfig(kind="stack", tables=dict(plan.tables), seed=plan.seed, holdout=holdout)
    features = PairFeatures(catalogue, open_all_tables(base))
    found, files = [], {}
    for share in plan.shares:
        kept_N = drawn(known.pairs, share, plan.seed)
        name = percent(share)
        if kept_N.sum() < LEAST_PAIRS:
            raise GradingError(
                f"{share:g} of the {len(known):,} grades of train and validation queries are "
                f"{kept_N.sum():,}; a grader needs at least {LEAST_PAIRS}, so name a larger share"
            )
        seen = known.take(np.flatnonzero(kept_N))
        folder = out / GRADERS / name
        grader = train_grader(seen, catalogue, folder, config=base, features=features, progress=progress)
        probability_NC = grader.probabilities(known.pairs)
        says_N = grader.grades(probability_NC)
        files[f"people_{name}"] = _rows(seen, seen.grade_N, f"people_{name}")
        files[f"model_{name}"] = _rows(known, says_N, f"model_{name}", probability_NC)
        rest = np.flatnonzero(~kept_N)
        agreement = _agreement(known.take(rest), probability_NC[rest], says_N[rest])
        found.append(
            ShareResult(
                share=share,
                people_source=f"people_{name}",
                model_source=f"model_{name}",
                people_pairs=len(seen),
                model_pairs=len(known),
                macro_f1=agreement["macro_f1"],
                qwk=agreement["qwk"],
            )
        )
    old = find_table(data, "relevance")
    with atomic_folder(out / DATA, ours=lambda folder: (folder / RELEVANCE).is_dir()) as temporary:
        link_other_tables(data, temporary)
        for number, path in enumerate(old.files if old else ()):
            link_or_copy(path, temporary / RELEVANCE / f"before-{number:06d}.parquet")
        for name, table in files.items():
            pq.write_table(table, temporary / RELEVANCE / f"{name}.parquet", compression="zstd")
    atomic_write_bytes(out / ABLATION, ablation_toml(plan).encode())
    result = Shares(
        sources=plan.sources,
        seed=plan.seed,
        pairs=len(known),
        test_pairs=len(graded) - len(known),
        shares=tuple(found),
    )
    result.write(out / RESULT)
    return result


def percent(share: float) -> str:
    """A share as its name.

    >>> percent(0.05), percent(0.25), percent(0.005)
    ('05', '25', '00_5')
    """
    whole, tenth = divmod(round(share * 1000), 10)
    return f"{whole:02d}" + (f"_{tenth}" if tenth else "")


def drawn(pairs: Pairs, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which pairs [N] people graded, by a hash: a larger share has all pairs of a smaller one."""
    found = []
    for query, product in zip(pairs.queries, pairs.product_ids.to_pylist(), strict=True):
        text = f"{seed}\0{query}\0{product}".encode(errors="surrogatepass")
        found.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64 < share)
    return np.array(found, bool)


def ablation_toml(plan: SharePlan) -> str:
    """Variants that differ in whose grades stage 2 trains on, and in nothing else.

    What comes before stage 2 is one of them where the config has that.
    """
    base = json.dumps(plan.config, ensure_ascii=False)
    lines = [
        "# What stage 2 gains when people grade a share of the pairs, and a grader the rest.",
        f"base = {base}",
        'default = "people"',
        f"seeds = {list(plan.seeds)}",
    ]

    def variant(name: str, title: str, sources: Sequence[str]) -> None:
        lines.extend(["", f"[variants.{name}]", f'title = "{title}"'])
        if sources:
            lines.append(f"settings.sources = {json.dumps(list(sources), ensure_ascii=False)}")
        else:
            lines.append("settings.align = false")

    variant("people", "People's grades of all pairs", plan.sources)
    encoders = load_config(Path(plan.config), EncodersConfig)
    if encoders.warmup is not None or encoders.pretrain is not None:
        variant("no_grades", "No grades: what stage 2 starts from", ())
    for share in plan.shares:
        name, shown = percent(share), f"{100 * share:.3g} %"
        people, model = f"people_{name}", f"model_{name}"
        variant(people, f"People's grades of {shown} of the pairs alone", [people])
        variant(f"{people}_{model}", f"People's grades of {shown}, a grader's of the rest", [people, model])
        variant(model, f"The grades of a grader that saw {shown} alone", [model])
    return "\n".join(lines) + "\n"


def _agreement(
    graded: GradedPairs, probability_NC: npt.NDArray[np.float64], says_N: npt.NDArray[np.int8]
) -> dict[str, float]:
    """Figures of the grader on all of these pairs, each query weighing 1."""
    said = Graded(graded.grade_N, says_N, probability_NC, graded.group_N)
    queries = int(graded.group_N.max()) + 1
    return {name: float(value[0]) for name, value in figures(said, np.ones((1, queries))).items()}


def _rows(
    graded: GradedPairs,
    grade_N: npt.NDArray[np.integer],
    source: str,
    probability_NC: npt.NDArray[np.float64] | None = None,
) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "query": pa.array(graded.pairs.queries, pa.string()),
        "product_id": graded.pairs.product_ids,
        "grade": pa.array(grade_N, pa.int8()),
        "source": pa.array([source] * len(graded), pa.string()),
    }
    for place, name in enumerate(PROBABILITIES if probability_NC is not None else ()):
        assert probability_NC is not None
        columns[name] = pa.array(probability_NC[:, place].astype(np.float32))
    return pa.table(columns)
