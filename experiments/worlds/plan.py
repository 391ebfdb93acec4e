"""Fresh worlds: for each seed of the marketplace its data, encoders, table 1 and rankers; resumable.

A world is a seed of the marketplace. In it every preset has its own log, and all have the same products,
queries and grades, so encoders are trained once a world. The seeds of encoders and rankers differ between
worlds: what chance does in one world says nothing of another, so means of worlds are independent.

OUT/worlds.json         what the worlds have in common
    world-<seed>/       experiments/worlds/parts.py
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from experiments.encoders.config import EncodersConfig
from experiments.marketplace.config import Candidates, MarketplaceConfig, Size
from experiments.marketplace.generate import DESCRIPTION
from experiments.runtime.job_pool import DIED, Job, OnProgress, run_jobs
from experiments.sweeps.sweep import PlannedRun, SweepConfig, job_of, tables_read, write_record
from experiments.sweeps.sweep import plan as plan_sweep
from experiments.sweeps.table2 import variant_title
from experiments.worlds.parts import (
    DASHCLIP,
    DATA,
    EMBEDDINGS,
    ENCODERS,
    FEATURES,
    STAGE_1,
    TABLES,
    are_trained,
    encode,
    has_data,
    has_rows,
    has_tables,
    make_data,
    measure_table1,
    train_encoders,
)
from features.artifacts import StrictModel, atomic_write_json, folder_lock, refuse_foreign_folder
from features.schema import FeatureConfig
from ranking.run import check_same_run, is_finished

SETTINGS = "worlds.json"
#: Worlds have numbers below the first of these, and fewer seeds of encoders or rankers than the second: so
#: no two worlds share a seed, and all stay below 2^31.
WORLDS, SEEDS_OF_A_WORLD = 2_000_000, 1000
Count = Annotated[int, Field(ge=1, lt=SEEDS_OF_A_WORLD)]
RivalName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class WorldsConfig(StrictModel):
    """Which worlds, and what is trained and compared in each."""

    size: Size
    worlds: Annotated[tuple[Annotated[int, Field(ge=0, lt=WORLDS)], ...], Field(min_length=1)]
    presets: Annotated[tuple[Candidates, ...], Field(min_length=1)]
    encoder_seeds: Count = 1
    ranker_seeds: Count = 2
    encoders: EncodersConfig
    #: Other recipes by name, trained once in each world on the same data: each is a row of table 1, and has a
    #: copy of every variant that reads DashCLIP's vectors.
    rivals: dict[RivalName, EncodersConfig] = Field(default_factory=dict)
    features: FeatureConfig
    #: What it reads lies in one folder, as in a demo: features, and tables named in `parts.TABLES`.
    sweep: SweepConfig

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        for name in ("worlds", "presets"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must differ from each other, got {values}")
        for name, encoders in {"": self.encoders, **self.rivals}.items():
            if encoders.pretrain is None or encoders.align is None:
                whose = f"encoders of {name}" if name else "encoders"
                raise ValueError(f"the {whose} need both stages, [pretrain] and [align]")
        for name in self.rivals:
            if name in (DATA, FEATURES, EMBEDDINGS, STAGE_1, DASHCLIP, *TABLES, *self.sweep.variants):
                raise ValueError(f"a rival needs a name of its own, but {name!r} is taken; choose another")
            if self.rivals[name].holdout != self.encoders.holdout:
                raise ValueError(
                    f"rival {name} must hold out what the encoders do, or it is trained on queries of table "
                    "1; give its config the same [holdout]"
                )
        if self.sweep.truth is None:
            raise ValueError(
                f"sweep {self.sweep.name!r} must name the folder truth: worlds are compared by what they let "
                "anybody reach"
            )
        self.tables()
        return self

    def tables(self) -> tuple[str, ...]:
        """Folders of the tables that the rankers read and that need no encoder, LSA for table 1 among them.

        Raises:
            ValueError: nothing is known that makes one of them.
        """
        home = Path("world")
        read = tables_read(plan_sweep(self.sweep.moved(home), home)).values()
        names = dict.fromkeys(["lsa", *(folder.name for folder in read if folder is not None)])
        unknown = [name for name in names if name not in (EMBEDDINGS, *TABLES)]
        if unknown:
            raise ValueError(
                f"sweep {self.sweep.name!r} reads vectors from {', '.join(unknown)}, but a world has only "
                f"{', '.join((EMBEDDINGS, *TABLES))}"
            )
        return tuple(name for name in names if name != EMBEDDINGS)

    def compared(self) -> SweepConfig:
        """The sweep, with the rivals' copies of what reads DashCLIP's vectors."""
        home, variants = self.sweep.features.parent, self.sweep.variants
        read = tables_read(plan_sweep(self.sweep, home))
        copies = {
            f"{name}_{rival}": variants[name].model_copy(
                update={
                    "title": f"{variants[name].title or variant_title(name)} (encoders: {rival})",
                    "product_table": home / rival / "products",
                    "query_table": home / rival / "queries",
                }
            )
            for rival in self.rivals
            for name in variants
            if read[name] == home / EMBEDDINGS
        }
        return self.sweep.model_copy(update={"variants": {**variants, **copies}})

    def marketplace(self, world: int, preset: Candidates) -> MarketplaceConfig:
        """What the data of a world are generated from."""
        return MarketplaceConfig.preset(self.size, preset, seed=world)


@dataclass(frozen=True)
class EncoderSeed:
    """One training of the encoders in a world. The first one's folders have plain names, as in a demo."""

    seed: int
    first: bool

    def named(self, name: str) -> str:
        """Name of a folder, a file's stem or a variant that depends on this training."""
        return name if self.first else f"{name}-{self.seed}"


@dataclass(frozen=True)
class PlannedSweep:
    """The rankers of one preset of one world. A variant that reads DashCLIP's vectors is there once for each
    encoder seed: `variants[name]` are its names in the sweep."""

    world: int
    preset: Candidates
    folder: Path
    config: SweepConfig
    runs: tuple[PlannedRun, ...]
    variants: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        return f"world {self.world} {self.preset}"


def encoder_seeds(config: WorldsConfig, world: int) -> tuple[EncoderSeed, ...]:
    """The first one is the world's own seed."""
    return tuple(
        EncoderSeed(world + WORLDS * number, first=number == 0) for number in range(config.encoder_seeds)
    )


def plan(config: WorldsConfig, out: Path) -> list[PlannedSweep]:
    """The sweep of every world and preset, presets innermost."""
    return [_sweep(config, out, world, preset) for world in config.worlds for preset in config.presets]


def _sweep(config: WorldsConfig, out: Path, world: int, preset: Candidates) -> PlannedSweep:
    folder = world_folder(out, world) / preset
    sweep = config.compared().moved(folder)
    read = tables_read(plan_sweep(sweep, folder))
    encoders = encoder_seeds(config, world)
    variants, names = {}, {}
    for name, variant in sweep.variants.items():
        own = encoders if read[name] == folder / EMBEDDINGS else encoders[:1]
        names[name] = tuple(encoder.named(name) for encoder in own)
        for encoder in own:
            tables = folder / encoder.named(EMBEDDINGS)
            there = {"product_table": tables / "products", "query_table": tables / "queries"}
            variants[encoder.named(name)] = variant if encoder.first else variant.model_copy(update=there)
    seeds = tuple(world * SEEDS_OF_A_WORLD + number for number in range(1, config.ranker_seeds + 1))
    sweep = sweep.model_copy(update={"seeds": seeds, "variants": variants})
    return PlannedSweep(world, preset, folder, sweep, tuple(plan_sweep(sweep, folder)), names)


def world_folder(out: Path, world: int) -> Path:
    """Of all presets of a world."""
    return out / f"world-{world}"


def table1_files(config: WorldsConfig, out: Path, world: int) -> list[Path]:
    """Table 1 of each encoder seed. Presets have the same queries and grades, so the first one's counts."""
    folder = world_folder(out, world) / config.presets[0]
    return [folder / f"{encoder.named('table1')}.json" for encoder in encoder_seeds(config, world)]


def check_same_worlds(config: WorldsConfig, out: Path) -> None:
    """Refuse a folder of other worlds; one that has some of the same is fine, and so is an empty one.

    Raises:
        FileExistsError: `out` holds something else.
        ValueError: it holds worlds with other settings; names which.
    """
    refuse_foreign_folder(out, ours=lambda folder: (folder / SETTINGS).is_file())
    path = out / SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        expected = _common(config)
        differ = [name for name in expected if found.get(name) != expected[name]]
        known = found.get("rivals", {})
        differ += [
            f"rival {name}"
            for name, rival in _rivals(config).items()
            if name in known and known[name] != rival
        ]
        if differ:
            raise ValueError(
                f"{out} holds worlds with other {', '.join(differ)} than asked for now ({path} has them); "
                "choose another folder, or delete this one"
            )
    for sweep in plan(config, out):
        description = sweep.folder / DATA / DESCRIPTION
        if description.is_file():
            marketplace = config.marketplace(sweep.world, sweep.preset).model_dump(mode="json")
            if json.loads(description.read_text(encoding="utf-8")).get("config") != marketplace:
                raise ValueError(
                    f"{description} is of a marketplace with other settings than this version generates; "
                    "choose another folder"
                )
        for run in sweep.runs:
            if (run.folder / "config.json").is_file():
                check_same_run(run.folder, run.config)


def claim(config: WorldsConfig, out: Path) -> None:
    """Make `out` the folder of these worlds, or find that it is.

    Raises:
        FileExistsError, ValueError: `out` holds something else, or other worlds.
    """
    check_same_worlds(config, out)
    path = out / SETTINGS
    known = json.loads(path.read_text(encoding="utf-8")).get("rivals", {}) if path.is_file() else {}
    atomic_write_json(path, {**_common(config), "rivals": {**known, **_rivals(config)}})


def _common(config: WorldsConfig) -> dict[str, Any]:
    """What all worlds of a folder must agree on. More worlds, presets, seeds and variants may come later."""
    return config.model_dump(mode="json", include={"size", "encoders", "features"})


def _rivals(config: WorldsConfig) -> dict[str, Any]:
    """Rivals by name. Others may come later, but what was trained under a name stays what it is."""
    rivals: dict[str, Any] = config.model_dump(mode="json", include={"rivals"})["rivals"]
    return rivals


def execute_worlds(
    config: WorldsConfig,
    out: Path,
    *,
    processes: int,
    command: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, str | None]:
    """Make what is not finished yet. Calling again after a kill goes on where it stopped.

    Every part is a job in a process of its own, with one thread. A failed one leaves `failure.txt` in its
    folder and stops only those that need it. If a process died, all that is not finished is tried once more.

    Returns:
        What went wrong with each job that was not finished yet, None where nothing did.

    Raises:
        BusyError: another process is at work in `out`.
        FileExistsError, ValueError: `out` holds something else, or other worlds.
    """
    with folder_lock(out):
        claim(config, out)
        errors: dict[str, str | None] = {}
        sweeps = plan(config, out)
        for sweep in sweeps:  # first, so that a report on what is finished can be made after a kill
            sweep.folder.mkdir(parents=True, exist_ok=True)
            write_record(sweep.config, sweep.folder, command)
        for _ in range(2):
            errors |= run_jobs(planned_jobs(config, out), processes=processes, on_progress=on_progress)
            if not any(error and DIED in error for error in errors.values()):
                break
        return errors


def planned_jobs(config: WorldsConfig, out: Path) -> list[Job]:
    """What is not finished yet, world by world, each job after those it needs."""
    jobs: list[Job] = []
    sweeps = plan(config, out)
    for world in config.worlds:
        jobs += _world_jobs(config, out, world, [sweep for sweep in sweeps if sweep.world == world])
    return jobs


def _world_jobs(config: WorldsConfig, out: Path, world: int, sweeps: Sequence[PlannedSweep]) -> list[Job]:
    """Data first, then the long training of the encoders beside the rankers that need none."""
    jobs: dict[str, Job] = {}

    def add(name: str, done: bool, work: Callable[..., None], folder: Path, needs: Sequence[str]) -> None:
        if not done:
            jobs[name] = Job(name, work, folder, tuple(need for need in needs if need in jobs))

    tables = config.tables()
    data_of = {sweep.preset: f"{sweep.name}: data" for sweep in sweeps}
    for sweep in sweeps:
        marketplace = config.marketplace(world, sweep.preset)
        work = partial(make_data, marketplace, sweep.folder, config.features, tables)
        add(data_of[sweep.preset], has_data(sweep.folder, tables), work, sweep.folder, ())
    first = sweeps[0]
    made_of: dict[Path, str] = {}
    later: list[tuple[str, bool, Callable[..., None], Path, list[str]]] = []

    def add_encoders(suffix: str, tables_name: str, settings: EncodersConfig) -> list[str]:
        """Training and the tables of every preset; what reads those of the first one needs the result."""
        folder = world_folder(out, world) / f"{ENCODERS}{suffix}"
        trained = f"world {world}: {ENCODERS}{suffix}"
        work = partial(train_encoders, first.folder / DATA, folder, settings)
        add(trained, are_trained(folder), work, folder, [data_of[first.preset]])
        needs = [trained]
        for sweep in sweeps:
            target = sweep.folder / tables_name
            earlier = None if sweep is first else (first.folder / DATA, first.folder / tables_name)
            work = partial(encode, sweep.folder / DATA, folder, target, settings, earlier=earlier)
            made_of[target] = f"{sweep.name}: vectors{suffix}"
            needs_now = [*needs, data_of[sweep.preset]]
            later.append((made_of[target], has_tables(target), work, target.parent, needs_now))
            needs = [trained, made_of[first.folder / tables_name]]
        return needs

    tables_of = {encoder: encoder.named(EMBEDDINGS) for encoder in encoder_seeds(config, world)}
    needed = {
        encoder: add_encoders(encoder.named(""), name, config.encoders.with_seed(encoder.seed))
        for encoder, name in tables_of.items()
    }
    of_rivals = [
        need
        for name, settings in config.rivals.items()
        for need in add_encoders(f"-{name}", name, settings.with_seed(world))
    ]
    for encoder, needs in needed.items():
        target = first.folder / f"{encoder.named('table1')}.json"
        folder = world_folder(out, world) / encoder.named(ENCODERS)
        rows = {DASHCLIP: tables_of[encoder], **{name: name for name in config.rivals}}
        work = partial(
            measure_table1,
            first.folder / DATA,
            first.folder,
            folder,
            {name: first.folder / tables_name for name, tables_name in rows.items()},
            target,
            config.encoders,
        )
        name = f"world {world}: {encoder.named('table 1')}"
        later.append((name, has_rows(target, rows), work, folder, [*needs, *of_rivals]))

    def add_rankers(*, early: bool) -> None:
        for sweep in sweeps:
            read = tables_read(sweep.runs)
            for run in sweep.runs:
                made = made_of.get(read[run.config.variant] or Path())
                if early == (made is None) and not is_finished(run.folder):
                    name = f"{sweep.name}: ranker {run.name}"
                    needs = tuple(need for need in (made, data_of[sweep.preset]) if need and need in jobs)
                    jobs[name] = job_of(run, name=name, needs=needs)

    add_rankers(early=True)
    for job in later:
        add(*job)
    add_rankers(early=False)
    return list(jobs.values())
