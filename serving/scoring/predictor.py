"""The predictor: a package in memory, requests in, scores out. It knows nothing of servers.

A worker imports this module and what lies below it: no torchrec, no fbgemm, no transformers, no pandas.
"""

import gc
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from features.artifacts import FileStamp, file_stamp
from features.online.request import RequestError, ScoreRequest
from features.online.request_features import FeatureRows
from serving.package.generations import ADVICE as GENERATION_ADVICE
from serving.package.generations import (
    CURRENT,
    GenerationManifest,
    current_generation,
    generation_folder,
    generation_names,
)
from serving.package.manifest import ADVICE, FIXED_PARTS, MODEL, QUERY_ENCODER, PackageManifest
from serving.package.parity import largest_difference, read_requests, read_scores, scores_of
from serving.package.residency import ServingSettings, Tables, hold
from serving.package.sealed_folder import PackageError, check_files, fingerprint_of
from serving.package.signature import TrustedKey, is_signed
from serving.package.tables import open_table
from serving.scoring.arithmetic import all_rows_run
from serving.scoring.backoff import Backoff
from serving.scoring.live_generation import LiveGeneration, Model
from serving.scoring.programs import load_compiled
from serving.scoring.query_encoder import QueryTextEncoder
from serving.wire.reply import ScoreReply

_log = logging.getLogger(__name__)

TABLES = "tables"
_PARITY_BATCH = 16
#: Candidates of more are rare, and take longer than the code for them.
_WARM = 512
#: Between two attempts at a generation that was refused: each reads all of its files.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0


class Predictor:
    """A verified package, ready to score. Threads may share it.

    A call uses one generation from its first request to its last, whatever happens to CURRENT meanwhile.
    """

    def __init__(
        self,
        package: Path,
        manifest: PackageManifest,
        model: Model,
        live: LiveGeneration,
        *,
        seen: "_Stamp | None",
        refused: str | None = None,
        trusted: TrustedKey | None = None,
        tables: Tables = "mapped",
    ) -> None:
        """For `load`. `seen` is what CURRENT was before `live` was opened, `refused` why it is not served."""
        self.package = package
        self.manifest = manifest
        self.model = model
        self.live = live
        self._fingerprint = fingerprint_of(package)
        self._seen = seen
        self._reloading = threading.Lock()
        self._refused = refused
        self._trusted = trusted
        self._tables: Tables = tables
        self._held = hold(package, tables)
        self._again = Backoff(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S)
        if refused is not None:
            self._again.failed()

    @classmethod
    def load(
        cls,
        package: Path,
        *,
        verify: bool = True,
        fall_back: bool = False,
        trusted: TrustedKey | None = None,
        tables: Tables = "mapped",
    ) -> Self:
        """Open a package: checks the size of every file and, with `verify`, checksums and the parity record.

        Args:
            fall_back: serve the newest older generation that passes where the current one does not, and try
                that one again from time to time. For servers: who builds and checks wants the error.
            trusted: who has to have signed the package and its generations; anybody or nobody if None.
            tables: "resident" reads into memory what the files hold before anything is scored, now and in
                each generation to come, "locked" keeps it there.

        Raises:
            PackageError: a file is missing, damaged or altered (it is named), or recorded requests get other
                scores, or the signature is not that of `trusted`, or so much memory must not be locked.
        """
        package = Path(package)
        manifest = PackageManifest.read(package)
        seen = _stamp(package)
        if trusted is not None:
            trusted.check_package(package)
        check_files(package, dict(manifest.files), verify=verify, advice=ADVICE, parts=FIXED_PARTS)
        model = open_model(package, manifest)
        refused = None
        try:
            live = _open_generation(
                package, current_generation(package), manifest, model, verify=verify, trusted=trusted
            )
        except Exception as error:
            older = None
            if fall_back:
                older = _open_older(package, manifest, model, verify=verify, trusted=trusted)
            if older is None:
                raise
            live, refused = older, str(error) or type(error).__name__
            _log.error("serving generation %s instead of the current one: %s", live.manifest.name, refused)
        return cls(package, manifest, model, live, seen=seen, refused=refused, trusted=trusted, tables=tables)

    def warm_up(self) -> None:
        """Meet every number of candidates that a program makes code for, up to `_WARM` candidates."""
        if self.model.backend.arithmetic != "torch":
            self.live.scorer.warm_up(all_rows_run(_WARM))

    def score(self, request: ScoreRequest) -> ScoreReply:
        """Score one request.

        Raises:
            RequestError: the request names columns or values that the model does not have.
        """
        reply = self.score_many([request])[0]
        if isinstance(reply, RequestError):
            raise reply
        return reply

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        """One reply or refusal for each request, all from one generation and as few calls as fit."""
        return self.live.score(requests)

    def feature_rows(self, request: ScoreRequest) -> FeatureRows:
        """What the model reads of a request, for comparisons with logged features.

        Raises:
            RequestError: the request names columns or values that the model does not have.
        """
        return self.live.features.rows(request)

    def reload_if_changed(self, *, wait: bool = False) -> bool:
        """Look whether CURRENT names another generation; if so load and verify it, then swap it in.

        Costs one stat if nothing changed. One that was refused is tried again after 5 s, 10 s, and so on up
        to 5 minutes: a file system may have been away. The loading happens in a thread of its own unless
        `wait`; requests are scored by the old generation until the new one is ready, and go on so if it is
        refused: `facts` then say why.

        Returns:
            Whether a change was seen, or a refused generation was tried again.
        """
        stamp = _stamp(self.package)
        again = self._refused is not None and self._again.due
        if (stamp == self._seen and not again) or not self._reloading.acquire(blocking=wait):
            return False
        self._seen = stamp
        if wait:
            self._reload()
        else:
            threading.Thread(target=self._reload, name="dashclip-reload", daemon=True).start()
        return True

    def facts(self) -> Mapping[str, Any]:
        """What is being served, JSON-able."""
        generation = self.live.manifest
        return {
            "model_version": self.manifest.model_version,
            "variant": self.manifest.variant,
            "package": self._fingerprint,
            "simulated": self.manifest.simulated,
            "generation": generation.name,
            "generation_files": self.live.fingerprint,
            "as_of": generation.as_of,
            "created": generation.created.isoformat(),
            "encoders": {kind: record.encoder_id for kind, record in generation.vectors.items()},
            "query_encoder": self.manifest.query_encoder,
            "counts": dict(generation.counts),
            "without_vector": {kind: record.missing for kind, record in generation.vectors.items()},
            "backend": self.model.backend.name,
            "backend_reason": self.model.backend.reason,
            "arithmetic": self.model.backend.arithmetic,
            "tables": self.manifest.tables,
            "memory": {
                "tables": self._tables,
                "mapped_bytes": sum(one.size for one in self._held),
                "resident_bytes": sum(one.resident for one in self._held),
            },
            "parity_difference": self.live.parity_difference,
            "refused_generation": self._refused,
            "signature": self._signature(),
        }

    def _signature(self) -> str:
        if self._trusted is not None:
            return f"checked by {self._trusted.path}"
        folders = (self.package, generation_folder(self.package, self.live.manifest.name))
        return "not checked" if all(map(is_signed, folders)) else "none"

    def _reload(self) -> None:
        """Runs with the lock held, and gives it back."""
        try:
            version = PackageManifest.read(self.package).model_version
            if version != self.manifest.model_version:
                raise PackageError(
                    f"{self.package} holds {version} now, this process serves {self.manifest.model_version}; "
                    "start it again"
                )
            name = current_generation(self.package)
            if name != self.live.manifest.name:
                live = _open_generation(
                    self.package, name, self.manifest, self.model, verify=True, trusted=self._trusted
                )
                self._held = hold(self.package, self._tables)
                self.live = live
                _log.info("serving generation %s", name)
            self._refused = None
            self._again.succeeded()
        except Exception as error:  # whatever it is (torch out of memory, say), nobody waits for this thread
            self._refused = str(error) or type(error).__name__
            self._again.failed()
            _log.error("keeping generation %s: %s", self.live.manifest.name, self._refused)
        finally:
            self._reloading.release()


def load_to_serve(package: Path, trusted_key: Path | None = None) -> Predictor:
    """As servers load: an older generation will do, and it is logged whether a signature was checked.

    Tables are held in memory as PACKAGE/serving.toml says, and the program is warm.

    Raises:
        PackageError: no generation can be served, or serving.toml asks for what this process may not do.
    """
    trusted = TrustedKey.read(trusted_key) if trusted_key else None
    tables = ServingSettings.of(package).tables
    predictor = Predictor.load(package, fall_back=True, trusted=trusted, tables=tables)
    predictor.warm_up()
    # A full collection of garbage walks everything that torch has made: a tenth of a second in which nobody
    # gets an answer. What is there now stays until the process ends, and is left out from now on.
    gc.freeze()
    memory = predictor.facts()["memory"]
    if tables != "mapped" and memory["resident_bytes"] < memory["mapped_bytes"]:
        _log.warning(
            "of %d MiB that are mapped %d fit into memory: requests will wait for the disk",
            memory["mapped_bytes"] >> 20,
            memory["resident_bytes"] >> 20,
        )
    if trusted is None:
        _log.warning(
            "no key is given to check the package by; its signature: %s", predictor.facts()["signature"]
        )
    return predictor


def open_checked(
    folder: Path, package: Path, manifest: PackageManifest, model: Model, *, verify: bool
) -> LiveGeneration:
    """A generation in `folder` once its files have passed; with `verify` the parity record has to, too.

    Raises:
        PackageError: a file is damaged, it does not fit the model, or recorded requests get other scores.
    """
    about = GenerationManifest.read(folder)
    check_files(folder, dict(about.files), verify=verify, advice=GENERATION_ADVICE)
    live = LiveGeneration.open(folder, model, about)
    live.fingerprint = fingerprint_of(folder)
    if live.manifest.schema_fingerprint != manifest.schema_fingerprint:
        raise PackageError(
            f"{folder} was made with another feature schema than the model "
            f"({live.manifest.schema_fingerprint} instead of {manifest.schema_fingerprint}); "
            f"{GENERATION_ADVICE}"
        )
    if verify:
        served_C = scores_of(score_recorded(live, package))
        difference = largest_difference(served_C, read_scores(folder))
        if not difference <= manifest.parity.tolerance:
            raise PackageError(
                f"{folder}: recorded requests get probabilities up to {difference:.2g} away from what was "
                f"recorded, {manifest.parity.tolerance:.0e} is allowed; this machine computes another model: "
                "make the package again here, or with `--backend eager`"
            )
        live.parity_difference = difference
    return live


def score_recorded(live: LiveGeneration, package: Path) -> list[ScoreReply | RequestError]:
    """What the recorded requests get from a generation."""
    requests = read_requests(package)
    replies: list[ScoreReply | RequestError] = []
    for start in range(0, len(requests), _PARITY_BATCH):
        replies += live.score(requests[start : start + _PARITY_BATCH])
    return replies


def open_model(package: Path, manifest: PackageManifest) -> Model:
    """What all generations of a package share; its files have been checked."""
    compiled = load_compiled(package / MODEL)
    return Model(
        program=compiled.program,
        shape=compiled.shape,
        backend=compiled.choice,
        tables={name: open_table(package / MODEL / TABLES / f"{name}.npy") for name in manifest.sparse_rows},
        context=manifest.context,
        version=manifest.model_version,
        encoder=QueryTextEncoder.open(package / QUERY_ENCODER) if manifest.query_encoder else None,
    )


def _open_generation(
    package: Path,
    name: str,
    manifest: PackageManifest,
    model: Model,
    *,
    verify: bool,
    trusted: TrustedKey | None,
) -> LiveGeneration:
    if trusted is not None:
        trusted.check_generation(generation_folder(package, name), manifest.model_version)
    return open_checked(generation_folder(package, name), package, manifest, model, verify=verify)


def _open_older(
    package: Path, manifest: PackageManifest, model: Model, *, verify: bool, trusted: TrustedKey | None
) -> LiveGeneration | None:
    """The newest generation that passes: of those before the current one if that is known, else of all.

    A later one than the current one was rolled back, so nobody wants it.
    """
    try:
        last = int(current_generation(package)) - 1
    except (ValueError, OSError):
        last = None
    for name in reversed(generation_names(package)):
        if last is None or int(name) <= last:
            try:
                return _open_generation(package, name, manifest, model, verify=verify, trusted=trusted)
            except Exception as error:
                _log.error("generation %s cannot be served either: %s", name, error)
    return None


_Stamp = FileStamp


def _stamp(package: Path) -> _Stamp | None:
    """Changes whenever CURRENT is replaced; None while it is away."""
    return file_stamp(package / CURRENT)
