"""Graders: what gives a pair probabilities of the three grades, learnt from pairs that people graded.

`overlap` reads how many of the query's words a text has, `vectors` adds the cosines of embedding tables, and
`stack` reads every feature there is. They differ in features and classifier alone. A grader that reads the
texts themselves is in `cross_encoder`.

Shapes: N pairs, C = 3 grades.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from safetensors.numpy import load_file, save_file

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.embedding_table import EmbeddingTable
from embeddings.grading.classifiers import Arrays, Classifier, fit, probabilities
from embeddings.grading.decision import Decision, StuffedTitles
from embeddings.grading.features import COSINE, PairFeatures, TextReader, with_vectors
from embeddings.grading.lessons import lessons_of, stuffed_pairs
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError, Pairs
from embeddings.grading.trained import (
    ADVICE,
    WEIGHTS,
    TrainedGrader,
    TrainedManifest,
    TrainingConfig,
    is_grader,
)
from features.artifacts import (
    MANIFEST,
    atomic_folder,
    checksums_of,
    read_manifest,
    verify_checksums,
)
from features.progress import Progress, silent

FloatArray = npt.NDArray[np.float64]
Kind = Literal["overlap", "vectors", "stack"]
KINDS: tuple[Kind, ...] = ("overlap", "vectors", "stack")

CATALOGUE = "catalogue.parquet"


class Grader(Protocol):
    """Anything that grades pairs."""

    @property
    def name(self) -> str:
        """Stands beside every grade."""

    @property
    def prompt_sha(self) -> str | None:
        """Of the prompt that it is asked with, if it is."""

    @property
    def holdout(self) -> HoldoutConfig | None:
        """What was kept from it; None if it has learnt from no grade and is shown none."""

    @property
    def tokens(self) -> int:
        """That it has used so far and that cost money."""

    @property
    def remarks(self) -> str:
        """What went wrong so far, in one sentence; empty if nothing did."""

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Probability [N, C] of irrelevant, moderate and high; NaN for a pair that it did not answer."""

    def grades(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int8]:
        """The grade [N] that it gives for such probabilities."""


class GraderConfig(TrainingConfig):
    """How a grader that reads features is trained."""

    kind: Kind = "stack"
    classifier: Classifier = "boosting"
    #: Folders of embedding tables (`products/`, `queries/`) by name.
    tables: dict[str, str] = Field(default_factory=dict)
    #: Of encoders that were aligned with the same grades: their cosines are read by the calibration alone.
    aligned: dict[str, str] = Field(default_factory=dict)


class GraderManifest(TrainedManifest):
    """What `manifest.json` of a grader that reads features says."""

    format: Literal["grader-1"] = "grader-1"
    config: GraderConfig
    features: tuple[str, ...]
    #: Tables whose encoder read the stuffed titles, and how many of these the calibration learnt from.
    read_anew: tuple[str, ...] = ()
    calibration_stuffed: int = 0

    @property
    def training(self) -> TrainingConfig:
        """Its settings."""
        return self.config

    @property
    def read(self) -> str:
        """How many features, and who read stuffed titles."""
        found = f"{len(self.features)} feature{'' if len(self.features) == 1 else 's'}"
        if self.read_anew:
            found += f" and stuffed titles by the encoder of {', '.join(self.read_anew)}"
        if self.calibration_stuffed:
            found += f", {self.calibration_stuffed:,} of them for the calibration"
        return found


@dataclass(frozen=True, eq=False)
class FeatureGrader(TrainedGrader):
    """A trained grader that reads features."""

    manifest: GraderManifest
    features: PairFeatures
    classifier: Arrays

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Calibrated probabilities [N, C]."""
        read_NF = self.features(pairs)
        names, config = self.features.names, self.manifest.config
        raw_NC = probabilities(
            self.classifier, read_NF[:, [names.index(name) for name in self.manifest.features]]
        )
        return self.decision.probabilities(raw_NC, _aligned_cosines(config, names, read_NF))

    def reading(self, readers: Mapping[str, TextReader]) -> Self:
        """The same grader; what made its tables reads texts that these have no vector of."""
        own = {name: reader for name, reader in readers.items() if name in self.tables}
        return replace(self, features=self.features.reading(own)) if own else self

    @property
    def tables(self) -> dict[str, str]:
        """Folders of all embedding tables that it reads, by name."""
        return {**self.manifest.config.tables, **self.manifest.config.aligned}

    @property
    def aligned(self) -> tuple[str, ...]:
        """Those that its calibration alone reads."""
        return tuple(self.manifest.config.aligned)

    def without_vector(self, product_ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Which products [N] have no vector in some of its tables."""
        return self.features.without_vector(product_ids)

    @classmethod
    def load(cls, folder: Path) -> "FeatureGrader":
        """Open a grader. The terms of its catalogue are counted again, which takes seconds.

        Raises:
            GradingError: it is no grader, or a file is missing or changed.
            EmbeddingTableError: an embedding table that it reads is gone.
        """
        manifest = read_manifest(folder, GraderManifest, what="a grader", error=GradingError, advice=ADVICE)
        verify_checksums(folder, manifest.checksums, error=GradingError, advice="train it again")
        content = pq.read_table(folder / CATALOGUE)
        catalogue = Catalogue(
            content.column("product_id").combine_chunks(), content.column("text").to_pylist()
        )
        arrays = load_file(folder / WEIGHTS)
        decision = Decision.from_arrays(arrays)
        features = PairFeatures(catalogue, open_all_tables(manifest.config))
        return cls(folder, manifest, decision, features, arrays)


def train_grader(
    graded: GradedPairs,
    catalogue: Catalogue,
    out: Path,
    *,
    config: GraderConfig,
    features: PairFeatures | None = None,
    readers: Mapping[str, TextReader] | None = None,
    progress: Progress = silent,
) -> FeatureGrader:
    """Fit on the pairs of train queries, set calibration and thresholds on those of validation queries.

    Test queries are not looked at.

    Args:
        features: fitted on `catalogue` with the config's tables, where several graders share them.
        readers: what made the tables of these names, so that a stuffed title has a vector of its own. With
            those of the aligned tables the calibration learns from stuffed titles of validation queries, as
            many for each and of the same weight as the classifier from those of train queries.

    Raises:
        GradingError: `vectors` without tables, train queries lack a grade, or `readers` do not fit.
        FileExistsError: `out` holds something else.
    """
    readers = readers or {}
    if config.kind == "vectors" and not config.tables:
        raise GradingError(
            "the grader `vectors` reads cosines of embedding tables; name a folder with products and queries "
            "(`dashclip embed lsa` makes one without training)"
        )
    stuffing = config if config.kind == "stack" else config.model_copy(update={"stuffed_per_query": 0})
    _refuse_readers(stuffing, readers)
    lessons = lessons_of(graded, catalogue, stuffing)
    progress("terms of the catalogue", 0, 1)
    features = features or PairFeatures(catalogue, open_all_tables(config))
    columns = _columns(config, features.names)
    kept = [features.names.index(name) for name in columns]
    validation = lessons.validation
    # People's pairs have the vectors of the tables, as when the grader grades; the titles that the classifier
    # learns from are read by the encoders of its own tables alone.
    reading = features.reading(readers)
    learnt = features.reading({name: reader for name, reader in readers.items() if name in config.tables})
    people, stuffed = np.split(np.arange(len(lessons.pairs)), [lessons.people])
    graded_NF = features.of_many(lessons.pairs.take(people) + validation.pairs, progress=progress)
    stuffed_NF = learnt.of_many(lessons.pairs.take(stuffed), progress=progress)
    validation_NF = graded_NF[lessons.people :]
    progress("training", 0, 1)
    arrays = fit(
        config.classifier if config.kind == "stack" else "logistic",
        np.vstack([graded_NF[: lessons.people], stuffed_NF])[:, kept],
        lessons.grade_N,
        weight_N=lessons.weight_N,
        seed=config.seed,
    )
    decision, titles = Decision.neutral(), None
    if len(validation):
        if config.aligned and readers.keys() >= config.aligned.keys():
            readable = with_vectors(catalogue, reading.without_vector(catalogue.product_ids))
            pairs = stuffed_pairs(graded, validation, readable, stuffing)
            read_MF = reading.of_many(pairs, progress=progress)
            further_ME = _aligned_cosines(config, features.names, read_MF)
            assert further_ME is not None
            raw_MC = probabilities(arrays, read_MF[:, kept])
            titles = StuffedTitles(raw_MC, further_ME, config.stuffed_weight)
        decision = Decision.learn(
            probabilities(arrays, validation_NF[:, kept]),
            validation.grade_N,
            _aligned_cosines(config, features.names, validation_NF),
            stuffed=titles,
        )
    progress("training", 1, 1)
    with atomic_folder(out, ours=is_grader) as temporary:
        stored = arrays | decision.to_arrays()
        save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, temporary / WEIGHTS)
        texts = pa.table(
            {"product_id": catalogue.product_ids, "text": pa.array(catalogue.texts, pa.string())}
        )
        pq.write_table(texts, temporary / CATALOGUE, compression="zstd")
        manifest = GraderManifest(
            config=config,
            features=columns,
            train_pairs=lessons.people,
            stuffed_pairs=lessons.stuffed,
            validation_pairs=len(validation),
            read_anew=tuple(sorted(readers)),
            calibration_stuffed=0 if titles is None else len(titles.raw_MC),
            checksums=checksums_of(temporary, (WEIGHTS, CATALOGUE)),
        )
        (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return FeatureGrader(out, manifest, decision, features, arrays)


def open_tables(folders: Mapping[str, str]) -> dict[str, tuple[EmbeddingTable, EmbeddingTable]]:
    """Products and queries of each folder."""
    return {
        name: (EmbeddingTable.load(Path(folder) / "products"), EmbeddingTable.load(Path(folder) / "queries"))
        for name, folder in folders.items()
    }


def open_all_tables(config: GraderConfig) -> dict[str, tuple[EmbeddingTable, EmbeddingTable]]:
    """Those that the classifier learns from, then those that the calibration alone reads.

    Raises:
        GradingError: a name stands for two folders.
    """
    if twice := sorted(config.tables.keys() & config.aligned.keys()):
        raise GradingError(f"{twice[0]} names two folders of tables; give each a name of its own")
    return open_tables({**config.tables, **config.aligned})


def _refuse_readers(config: GraderConfig, readers: Mapping[str, TextReader]) -> None:
    """Refuse encoders that have nothing to read, or whose titles would teach the calibration a wrong thing.

    Raises:
        GradingError: says which, and what to do.
    """
    if readers and not config.stuffed_per_query:
        raise GradingError(
            f"encoders read the stuffed titles that a grader learns from, but this {config.kind} learns from "
            "none; leave the encoders out, or train a `stack` with at least one stuffed title a query"
        )
    unread = sorted(config.aligned.keys() - readers.keys())
    if unread and config.aligned.keys() & readers.keys():
        raise GradingError(
            "the calibration must see stuffed titles by the encoders of all aligned tables, or it learns to "
            f"trust the others, but {', '.join(unread)} has none; name its encoder, too, or that of no "
            "aligned table"
        )


def _columns(config: GraderConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name for name in names if name not in _aligned_names(config))
    cosines = tuple(name for name in names if name.startswith(COSINE))
    if config.kind == "overlap":
        return ("token_overlap",)
    return ("token_overlap", *cosines) if config.kind == "vectors" else names


def _aligned_names(config: GraderConfig) -> tuple[str, ...]:
    return tuple(f"{COSINE}{name}" for name in config.aligned)


def _aligned_cosines(
    config: GraderConfig, names: tuple[str, ...], read_NF: npt.NDArray[np.float32]
) -> FloatArray | None:
    """What the calibration reads beside log probabilities: each cosine and its square."""
    if not config.aligned:
        return None
    cosines_NE = read_NF[:, [names.index(name) for name in _aligned_names(config)]].astype(np.float64)
    return np.hstack([cosines_NE, cosines_NE**2])
