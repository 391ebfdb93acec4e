"""The ablation of the encoders: variants x seeds, trained, encoded and measured; resumable at any moment.

OUT/pretrain/<fingerprint>/       stage 1, or the warm-ups without it, shared by all runs that agree on what
                                  it depends on
    <variant>/seed-<n>/align/     stage 2
                       tables/    vectors of all products and of the held-out queries
                       metrics.json
    ablation.json, ablation.md    the report (`encoder_ablation_report`)
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experiments.ablation.run import METRICS_FILE, run_stage_1, run_variant
from experiments.config import ConfigError, KeysOf, load_config, merged, parse_config
from experiments.encoders.config import EncodersConfig
from experiments.runtime.job_pool import Job, OnProgress, run_jobs
from features.artifacts import differences, folder_lock, sha256_of
from features.inputs.tables import table_files

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

PRETRAIN = "pretrain"
#: Sections that a variant may leave out, which TOML has no null for. Without `align` it is what comes before.
_LEFT_OUT = (PRETRAIN, "warmup", "image_warmup", "align")
#: What stage 1 depends on.
_STAGE_1 = {
    "size",
    "vocab_size",
    "architecture",
    "seed",
    "text_columns",
    "holdout",
    "warmup",
    "image_warmup",
    PRETRAIN,
}
#: Input tables that results depend on, and the simulated truth.
_INPUTS = ("products", "relevance", "truth/products", "truth/queries")


class VariantConfig(BaseModel):
    """What a variant has of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: What tables call it.
    title: str
    #: Over those of the base, key by key; `pretrain`, `warmup`, `image_warmup` and `align` are left out if
    #: `false`. `modalities` are those of stage 2 and of the tables; stage 1 sees images and titles always.
    settings: Annotated[dict[str, Any], KeysOf(EncodersConfig)] = {}
    #: Those of the ablation if None.
    seeds: Seeds | None = None


class AblationConfig(BaseModel):
    """What is compared with `default`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: An EncodersConfig: its TOML file, the name of a shipped one, or the settings themselves.
    base: str | dict[str, Any]
    #: Over those of the base, for all variants.
    settings: Annotated[dict[str, Any], KeysOf(EncodersConfig)] = {}
    #: The variant that all others are compared with.
    default: str = "default"
    #: Every variant is trained with each of these, unless it has its own.
    seeds: Seeds = (1, 2, 3, 4, 5)
    #: Places of the retrieved list that count.
    k: Annotated[int, Field(ge=1)] = 10
    #: Widths at which the first coordinates are measured alone, wherever a variant has more.
    widths: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...] = ()
    #: What is compared, by name.
    variants: Annotated[
        dict[Annotated[str, Field(pattern="^[a-z0-9_]+$")], VariantConfig], Field(min_length=1)
    ]

    @model_validator(mode="after")
    def _can_be_compared(self) -> Self:
        if self.default not in self.variants:
            raise ValueError(f"default {self.default!r} is not one of the variants {list(self.variants)}")
        if PRETRAIN in self.variants:
            raise ValueError(f"a variant may not be named {PRETRAIN!r}: stage 1 has that folder")
        for seeds in (self.seeds, *map(self.seeds_of, self.variants)):
            if len(set(seeds)) != len(seeds):
                raise ValueError(f"seeds must differ from each other, got {seeds}")
        return self

    def seeds_of(self, variant: str) -> tuple[int, ...]:
        """Seeds of a variant, its own or the common ones."""
        return self.variants[variant].seeds or self.seeds


@dataclass(frozen=True)
class PlannedRun:
    """A variant with a seed: its settings, its folder, and what comes before stage 2, perhaps shared."""

    variant: str
    seed: int
    config: EncodersConfig
    folder: Path
    #: What stage 1 or the warm-ups without it see, and where they lie; None where stage 2 comes first.
    stage_1: EncodersConfig | None
    stage_1_folder: Path | None

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"

    @property
    def metrics(self) -> Path:
        """Written last."""
        return self.folder / METRICS_FILE


def plan(config: AblationConfig, out: Path) -> list[PlannedRun]:
    """Every run, seeds outermost: an ablation that is stopped early still compares all variants.

    Raises:
        ConfigError: the settings of the base or of a variant are not those of an encoder.
    """
    common = _base(config)
    settings = {}
    for name, variant in config.variants.items():
        content = merged(common, variant.settings)
        content |= {section: None for section in _LEFT_OUT if content.get(section) is False}
        settings[name] = parse_config(content, EncodersConfig, where=f"variant {name!r}")
        if settings[name].lacks_words:
            raise ConfigError(
                f"variant {name!r}: [image_warmup] needs a [warmup] section, or images learn titles unread"
            )
        if settings[name].align is None and settings[name].pretrain is None and settings[name].warmup is None:
            raise ConfigError(
                f"variant {name!r} must train something; give it [warmup], [pretrain] or [align]"
            )
    seeds = dict.fromkeys(seed for name in config.variants for seed in config.seeds_of(name))
    return [
        _planned(name, seed, settings[name].with_seed(seed), out)
        for seed in seeds
        for name in config.variants
        if seed in config.seeds_of(name)
    ]


def execute_ablation(
    config: AblationConfig,
    data: Path,
    out: Path,
    *,
    processes: int,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, str | None]:
    """Train and measure what is not finished yet. Calling again after a kill goes on where it stopped.

    Every stage 1 (or the warm-ups without it) and every run is a job in a process of its own, with one
    thread. A failed job leaves `failure.txt` in its folder and stops only those that need it.

    Returns:
        What went wrong with each job that was not finished yet, None where nothing did.

    Raises:
        ConfigError: the settings of a variant are not those of an encoder.
        ValueError: `out` holds results of other settings or data.
        BusyError: another process is at work in `out`.
    """
    runs = plan(config, out)
    checksum = data_checksum(data)
    with folder_lock(out):
        for run in runs:
            check_same_run(run, data=checksum)
        return run_jobs(
            _jobs(config, [run for run in runs if not run.metrics.is_file()], data, checksum, device),
            processes=processes,
            on_progress=on_progress,
        )


def check_same_run(run: PlannedRun, *, data: str) -> None:
    """Refuse the results of another config or other data under the name of this run.

    Raises:
        ValueError: `metrics.json` differs in either; it names the folder.
    """
    if not run.metrics.is_file():
        return
    found = json.loads(run.metrics.read_text(encoding="utf-8"))
    given = run.config.model_dump(mode="json")
    try:
        settings = EncodersConfig.model_validate(found["config"]).model_dump(mode="json")
    except ValidationError:
        settings = found["config"]
    other = f"settings ({differences(settings, given)})" if settings != given else ""
    if other or found["data"] != data:
        raise ValueError(
            f"{run.folder} holds a finished run of other {other or 'data'}; delete it or choose another "
            "folder"
        )


def data_checksum(data: Path) -> str:
    """Of the products, the grades and the simulated truth of a data folder."""
    digest = hashlib.sha256()
    for name in _INPUTS:
        for part in table_files(data, name):
            digest.update(f"{part.relative_to(data)} {sha256_of(part)}\n".encode())
    return digest.hexdigest()


def _base(config: AblationConfig) -> dict[str, Any]:
    base = config.base
    content = (
        load_config(Path(base), EncodersConfig).model_dump(mode="json") if isinstance(base, str) else base
    )
    return merged(content, config.settings)


def _planned(variant: str, seed: int, config: EncodersConfig, out: Path) -> PlannedRun:
    stage_1, folder = None, None
    if config.pretrain is not None or config.warmup is not None:
        # The same record of inputs for all runs that share it. Without stage 1 images that nobody reads do
        # not warm up.
        both = config.pretrain is not None
        stage_1 = config.model_copy(update={"modalities": ("image", "text")} if both else {})
        include = _STAGE_1 if both else _STAGE_1 | {"modalities"}
        depends_on = json.dumps(stage_1.model_dump(mode="json", include=include), sort_keys=True)
        folder = out / PRETRAIN / hashlib.sha256(depends_on.encode()).hexdigest()[:12]
    return PlannedRun(variant, seed, config, out / variant / f"seed-{seed}", stage_1, folder)


def _jobs(
    config: AblationConfig, runs: Sequence[PlannedRun], data: Path, checksum: str, device: str
) -> list[Job]:
    """Stage 1, or the warm-ups without it, just before the first run that needs them."""
    jobs: dict[str, Job] = {}
    for run in runs:
        needs: tuple[str, ...] = ()
        if run.stage_1 is not None and run.stage_1_folder is not None:
            kind = "warm-ups" if run.stage_1.pretrain is None else "stage 1"
            needs = (f"{kind} {run.stage_1_folder.name} seed {run.seed}",)
            work = partial(run_stage_1, data, run.stage_1_folder, run.stage_1, device)
            jobs.setdefault(needs[0], Job(needs[0], work, run.stage_1_folder))
        work = partial(
            run_variant,
            data,
            run.folder,
            run.config,
            stage_1=run.stage_1_folder,
            identity={"variant": run.variant, "seed": run.seed, "data": checksum},
            k=config.k,
            widths=config.widths,
            device=device,
        )
        jobs[run.name] = Job(run.name, work, run.folder, needs)
    return list(jobs.values())
