"""Several trained graders as one: a calibration reads what each of them says of a pair.

A boosting over words, a model that reads query and title together and one that answers a prompt err in
different places. Each has learnt from train queries; validation queries teach the calibration which of them
to believe, and stuffed titles beside these who is fooled.

Shapes: N pairs, G graders, C = 3 grades.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field
from safetensors.numpy import load_file, save_file

from embeddings.catalog.holdout import VALIDATION
from embeddings.grading.decision import Decision, StuffedTitles, logs
from embeddings.grading.features import TextReader, refuse_idle_readers, with_vectors
from embeddings.grading.lessons import stuffed_pairs
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError, Pairs
from embeddings.grading.trained import (
    ADVICE,
    WEIGHTS,
    TrainedGrader,
    TrainedManifest,
    TrainingConfig,
    is_grader,
)
from features.artifacts import MANIFEST, atomic_folder, checksums_of, read_manifest, verify_checksums
from features.progress import Progress, silent

FloatArray = npt.NDArray[np.float64]

#: Pairs that one grader reads between two signs of progress.
_AT_A_TIME = 256


class CombinedConfig(TrainingConfig):
    """Which graders are combined."""

    kind: Literal["combined"] = "combined"
    #: Folders of trained graders by name; the first one stands for all where there are no validation queries.
    graders: Annotated[dict[str, str], Field(min_length=2)]


class CombinedManifest(TrainedManifest):
    """What `manifest.json` of a combined grader says; its train pairs are the most that one of them saw."""

    format: Literal["combined-1"] = "combined-1"
    config: CombinedConfig
    #: `TrainedGrader.name` of each: another training of it is another grader.
    members: dict[str, str]
    read_anew: tuple[str, ...] = ()

    @property
    def training(self) -> TrainingConfig:
        """Its settings."""
        return self.config

    @property
    def read(self) -> str:
        """Which graders."""
        return f"by what {', '.join(self.members)} say"


@dataclass(frozen=True, eq=False)
class CombinedGrader(TrainedGrader):
    """Trained graders and the calibration over them."""

    manifest: CombinedManifest
    members: Mapping[str, TrainedGrader]

    @property
    def name(self) -> str:
        """Its kind and a digest of its weights and of its graders: over others it is another grader."""
        said = " ".join([self.manifest.checksums[WEIGHTS], *self.manifest.members.values()])
        return f"{self.manifest.config.kind}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Calibrated probabilities [N, C]; NaN for a pair that one of them cannot read."""
        return self.decision.probabilities(*_inputs(self.members, pairs))

    def reading(self, readers: Mapping[str, TextReader]) -> "CombinedGrader":
        """The same graders, each with the readers of its tables."""
        return replace(self, members={name: one.reading(readers) for name, one in self.members.items()})

    @property
    def tables(self) -> dict[str, str]:
        """Folders of the tables of all of them, by name."""
        return _tables_of(self.members)

    @property
    def aligned(self) -> tuple[str, ...]:
        """Those that the calibrations of its graders read."""
        return tuple(sorted({table for one in self.members.values() for table in one.aligned}))

    def without_vector(self, product_ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Which products [N] have no vector in some table of one of them."""
        return np.any([one.without_vector(product_ids) for one in self.members.values()], axis=0)

    @classmethod
    def load(cls, folder: Path, open_member: Callable[[Path], TrainedGrader]) -> "CombinedGrader":
        """Open it with all of its graders, which stay in their own folders.

        Raises:
            GradingError: it is none, a file is missing or changed, or one of its graders was trained again.
        """
        manifest = read_manifest(
            folder, CombinedManifest, what="a combined grader", error=GradingError, advice=ADVICE
        )
        verify_checksums(folder, manifest.checksums, error=GradingError, advice="train it again")
        members = {name: open_member(Path(where)) for name, where in manifest.config.graders.items()}
        for name, one in members.items():
            if one.name != manifest.members[name]:
                raise GradingError(
                    f"{folder} combines {name} as {manifest.members[name]}, but {one.folder} now "
                    f"holds {one.name}; combine the graders again (`dashclip grade train --grader combined`)"
                )
        return cls(folder, manifest, Decision.from_arrays(load_file(folder / WEIGHTS)), members)


def combine_graders(
    graded: GradedPairs,
    catalogue: Catalogue,
    out: Path,
    *,
    config: CombinedConfig,
    members: Mapping[str, TrainedGrader],
    readers: Mapping[str, TextReader] | None = None,
    progress: Progress = silent,
) -> CombinedGrader:
    """Learn from validation queries whom to believe. Train and test queries are not looked at.

    Args:
        members: the config's graders, opened; all held out what the config does.
        readers: what made tables of these, so that a stuffed title has a vector of its own.

    Raises:
        GradingError: no validation query has a graded pair, two graders read different tables of one name,
            or a table that a calibration reads has no reader, so that stuffed titles would look harmless.
        FileExistsError: `out` holds something else.
    """
    readers = readers or {}
    folders = _tables_of(members)
    validation = graded.of_role(VALIDATION)
    if not len(validation):
        raise GradingError("graders are combined by pairs of validation queries, and none has a graded pair")
    unread = sorted({table for one in members.values() for table in one.aligned} - readers.keys())
    if unread and config.stuffed_per_query:
        raise GradingError(
            "who is fooled by a stuffed title shows where the encoders of aligned tables read it, but that "
            f"of {', '.join(unread)} is not there; name it by --encoder, or learn from none (--stuffed 0)"
        )
    refuse_idle_readers(readers, folders)
    people = _inputs(members, validation.pairs, progress=progress)
    answered_N = ~np.isnan(np.hstack(people)).any(axis=1)
    titles = None
    if config.stuffed_per_query:
        reading = {name: one.reading(readers) for name, one in members.items()}
        lacking_P = np.any([one.without_vector(catalogue.product_ids) for one in members.values()], axis=0)
        pairs = stuffed_pairs(graded, validation, with_vectors(catalogue, lacking_P), config)
        first_MC, further_ME = _inputs(reading, pairs, progress=progress)
        read_M = ~np.isnan(np.hstack([first_MC, further_ME])).any(axis=1)
        titles = StuffedTitles(first_MC[read_M], further_ME[read_M], config.stuffed_weight)
    first_NC, further_NE = (part[answered_N] for part in people)
    decision = Decision.learn(first_NC, validation.grade_N[answered_N], further_NE, stuffed=titles)
    manifest = CombinedManifest(
        config=config,
        members={name: one.name for name, one in members.items()},
        train_pairs=max(one.manifest.train_pairs for one in members.values()),
        stuffed_pairs=0 if titles is None else len(titles.raw_MC),
        validation_pairs=int(answered_N.sum()),
        read_anew=tuple(sorted(readers)),
        checksums={},
    )
    with atomic_folder(out, ours=is_grader) as temporary:
        save_file(decision.to_arrays(), temporary / WEIGHTS)
        manifest = manifest.model_copy(update={"checksums": checksums_of(temporary, (WEIGHTS,))})
        (temporary / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return CombinedGrader(out, manifest, decision, members)


def _tables_of(members: Mapping[str, TrainedGrader]) -> dict[str, str]:
    """Folders by name of table.

    Raises:
        GradingError: one name stands for two folders, so a reader of that name would be of one of them alone.
    """
    found: dict[str, str] = {}
    for name, one in members.items():
        for table, folder in one.tables.items():
            if found.setdefault(table, folder) != folder:
                raise GradingError(
                    f"{name} reads a table {table!r} in {folder}, another one in {found[table]}; train one "
                    "of them with another name for its table"
                )
    return found


def _inputs(
    members: Mapping[str, TrainedGrader], pairs: Pairs, *, progress: Progress = silent
) -> tuple[FloatArray, FloatArray]:
    """Probabilities [N, C] of the first grader, and logarithms [N, (G - 1) C] of those of the others."""
    said = []
    for name, one in members.items():
        parts = []
        for start in range(0, len(pairs), _AT_A_TIME):
            progress(f"pairs read by {name}", start, len(pairs))
            parts.append(one.probabilities(pairs.take(np.arange(start, min(start + _AT_A_TIME, len(pairs))))))
        progress(f"pairs read by {name}", len(pairs), len(pairs))
        said.append(np.vstack(parts) if parts else one.probabilities(pairs))
    return said[0], np.hstack([logs(one_NC) for one_NC in said[1:]])
