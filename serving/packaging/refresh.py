"""Refreshes a package: new vectors, a new feature snapshot, the same model.

A new generation is written beside the live one, verified with the program that will serve it, and only then
named in CURRENT. Workers see that, load it beside the old one and swap; no request waits or fails.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features.progress import Progress, silent
from serving.package.generations import ADVICE as GENERATION_ADVICE
from serving.package.generations import (
    GateRecord,
    GenerationManifest,
    activate,
    current_generation,
    generation_folder,
    locked,
    new_generation,
    next_name,
    refuse_pinned,
    remove_old,
    seal_generation,
)
from serving.package.manifest import ADVICE, FIXED_PARTS, MODEL, EntityKind, PackageManifest
from serving.package.parity import read_requests, read_scores, scores_of, write_scores
from serving.package.sealed_folder import PackageError, check_files
from serving.package.signature import SigningKey, is_signed
from serving.package.vectors import SourceVectors
from serving.packaging.build_generation import SnapshotSource, check_source, fill_generation
from serving.packaging.gate import GateLimits, check_gate, gate_record
from serving.scoring.live_generation import LiveGeneration
from serving.scoring.predictor import open_checked, open_model, score_recorded
from serving.scoring.programs import open_module


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        moved_most, moved_mean: by how much probabilities of the recorded requests differ from the generation
            before; their counters and purchases are recorded, so only vectors and attributes move them.
        removed: generations that were deleted.
        gate: how both compare.
    """

    before: GenerationManifest
    now: GenerationManifest
    moved_most: float
    moved_mean: float
    removed: tuple[str, ...]
    gate: GateRecord
    seconds: float


def refresh(
    package: Path,
    *,
    snapshot: SnapshotSource | None = None,
    vectors: Mapping[EntityKind, SourceVectors] | None = None,
    force: bool = False,
    signing_key: SigningKey | None = None,
    progress: Progress = silent,
) -> Refreshed:
    """Write, verify and activate a new generation; what is not given stays as it is.

    Args:
        force: activate it although it does not pass the gate, or the live one is pinned.
        signing_key: signs the new generation, as it has to be where the one before is signed.

    Raises:
        GateError: it is much poorer, older or other than the live one; says the numbers.
        PackageError: nothing is given, the live generation is pinned, or signed and there is no key, the
            vectors are of another encoder or width, the package is damaged or another refresh is running.
        ValueError: the log cannot be used. In every case the live generation stays.
    """
    started = time.monotonic()
    vectors = vectors or {}
    if snapshot is None and not vectors:
        raise PackageError(
            "there is nothing to refresh; give a log (--data), product vectors (--product-table) or query "
            "vectors (--query-table)"
        )
    with locked(package):
        if not force:
            refuse_pinned(package)
        manifest = PackageManifest.read(package)
        limits = GateLimits.of(package)
        for kind, source in vectors.items():
            check_source(manifest, kind, source)
        live_name = current_generation(package)
        live_folder = generation_folder(package, live_name)
        before = GenerationManifest.read(live_folder)
        if signing_key is None and is_signed(live_folder):
            raise PackageError(
                f"generation {live_name} of {package} is signed, so servers may refuse one that is not; give "
                "the private key (--signing-key)"
            )
        check_files(
            package,
            dict(manifest.files),
            verify=True,
            advice=ADVICE,
            parts=FIXED_PARTS,
            progress=progress,
        )
        check_files(live_folder, dict(before.files), verify=True, advice=GENERATION_ADVICE, progress=progress)
        model = open_model(package, manifest)
        module = open_module(package / MODEL, model.shape)
        name = next_name(package)
        with new_generation(package, name) as folder:
            about = fill_generation(
                folder,
                package,
                manifest,
                module,
                name=name,
                based_on=live_name,
                snapshot=snapshot,
                vectors=vectors,
                progress=progress,
            )
            uncompiled = replace(model, program=lambda inputs: module(*inputs))
            live = LiveGeneration.open(folder, uncompiled, about)
            running = LiveGeneration.open(live_folder, uncompiled, before)
            checks = check_gate(running, live, read_requests(package), limits)
            gate = gate_record(checks, package=package, force=force)
            scores_C = scores_of(score_recorded(live, package))
            moved_C = np.abs(scores_C - read_scores(live_folder))
            write_scores(folder, scores_C)
            now = seal_generation(folder, about.model_copy(update={"gate": gate}))
            if signing_key is not None:
                signing_key.sign_generation(folder, manifest.model_version)
            open_checked(folder, package, manifest, model, verify=True)
        activate(package, name)
        removed = remove_old(package)
    return Refreshed(
        before=before,
        now=now,
        moved_most=float(moved_C.max(initial=0.0)),
        moved_mean=float(moved_C.mean()) if len(moved_C) else 0.0,
        removed=tuple(removed),
        gate=gate,
        seconds=time.monotonic() - started,
    )
