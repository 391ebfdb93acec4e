"""Several packages behind one scorer: a champion, challengers that get a share of the users, and shadows.

Who is served by whom stands in a small file, routing.json, that is looked at like CURRENT while the server
runs: replaced by one rename, seen within a second. A file that cannot be used changes nothing: the last good
one goes on, and `facts` say why.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from features.artifacts import FileStamp, StrictModel, atomic_write_json, file_stamp
from features.online.request import RequestError, ScoreRequest
from serving.scoring.routing import assign, check_shares
from serving.wire.reply import CHAMPION, Scorer, ScoreReply, Shadow, Unavailable

_log = logging.getLogger(__name__)

ROUTING = "routing.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SALT_BYTES = 6

Salt = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class RoutingError(ValueError):
    """A routing.json that cannot be used; says what is wrong with it."""


class Routing(StrictModel):
    """Who is served by which variant.

    Attributes:
        shares: of the users, by variant; they add up to 1. The order is that of `assign`: the champion last,
            so that the last challenger takes users of the champion as it grows, and gives none back.
        salt: users are drawn anew with another one. None stands for one that follows from the packages, the
            same on every host with the same packages.
        nobody: who serves requests without a user.
        shadow: variants that score what others serve; nobody sees their answers.
        killed: the champion serves all and nothing shadows, whatever else stands here.
    """

    format: Literal[1] = 1
    shares: Mapping[str, float]
    salt: Salt | None = None
    nobody: str = CHAMPION
    shadow: tuple[str, ...] = ()
    killed: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Routing":
        check_shares(self.shares)
        return self

    @property
    def names(self) -> set[str]:
        """Every variant that is named."""
        return {*self.shares, self.nobody, *self.shadow}

    def variant_of(self, user_id: int | str | None, salt: str) -> str:
        """Who serves a user."""
        if self.killed:
            return CHAMPION
        return self.nobody if user_id is None else assign(str(user_id), salt, self.shares)

    def shadows_of(self, variant: str) -> tuple[str, ...]:
        """Who scores what `variant` serves, too."""
        return () if self.killed else tuple(name for name in self.shadow if name != variant)

    def with_shares(self, changed: Mapping[str, float]) -> "Routing":
        """Other shares for some challengers; the champion gets what is left.

        Raises:
            RoutingError: the champion is among them, or less than nothing is left.
        """
        if CHAMPION in changed:
            raise RoutingError(f"the share of {CHAMPION} is what the challengers leave: give theirs")
        others = {name: share for name, share in self.shares.items() if name != CHAMPION} | dict(changed)
        left = 1 - sum(others.values())
        if left < -1e-12:
            raise RoutingError(f"the shares of the challengers add up to {1 - left:.6g}, 1 at most can")
        return self.changed(shares={**others, CHAMPION: round(max(left, 0.0), 12)})

    def changed(self, **fields: object) -> "Routing":
        """The same but for some fields.

        Raises:
            RoutingError: that is none.
        """
        try:
            return Routing.model_validate({**self.model_dump(), **fields})
        except ValidationError as error:
            raise RoutingError(_reason(error)) from None

    @classmethod
    def of(cls, challengers: Sequence[str]) -> "Routing":
        """The champion serves all."""
        return cls(shares={**dict.fromkeys(challengers, 0.0), CHAMPION: 1.0})

    @classmethod
    def read(cls, path: Path) -> "Routing":
        """Read it.

        Raises:
            RoutingError: it is not there, not JSON, or not a routing.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise RoutingError(f"{path} cannot be read ({error.strerror}); {_ADVICE}") from None
        except ValidationError as error:
            raise RoutingError(f"{path} cannot be used: {_reason(error)}; {_ADVICE}") from None

    def write(self, path: Path) -> None:
        """Replace the file."""
        atomic_write_json(path, self.model_dump(mode="json"))


def start_routing(state: Path, challengers: Iterable[str]) -> None:
    """Write the routing of a server that meets challengers for the first time: the champion serves all."""
    names = [*challengers]
    if names and not (state / ROUTING).exists():
        Routing.of(names).write(state / ROUTING)


def keep_routing(state: Path, challengers: Iterable[str]) -> None:
    """Have the routing of a server name these challengers and no others.

    Those that it names already keep their shares; what others had goes to the champion.
    """
    names = [*challengers]
    try:
        before = Routing.read(state / ROUTING)
    except RoutingError:
        start_routing(state, names)
        return
    routing = Routing.of(names).with_shares({name: before.shares.get(name, 0.0) for name in names})
    Routing.model_validate(
        {
            **before.model_dump(),
            "shares": dict(routing.shares),
            "nobody": before.nobody if before.nobody in routing.names else CHAMPION,
            "shadow": tuple(name for name in before.shadow if name in routing.names),
        }
    ).write(state / ROUTING)


_ADVICE = "`dashclip route` writes it"


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")


def check_name(name: str) -> None:
    """Raises ValueError if a challenger cannot have this name: it stands in metrics and in file names."""
    if name == CHAMPION or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a challenger; use letters, digits, - and _, and no {CHAMPION}"
        )


@dataclass(frozen=True)
class _Live:
    """What one call uses from its first request to its last."""

    routing: Routing
    salt: str
    refused: str | None = None


class RoutedScorer:
    """Gives each request to the variant of its user. Threads may share it."""

    def __init__(
        self, champion: Scorer, challengers: Mapping[str, Scorer], *, routing_file: Path | None = None
    ) -> None:
        """
        Args:
            routing_file: looked at now and by `reload_if_changed`. Until there is a good one, the champion
                serves all.
        """
        for name in challengers:
            check_name(name)
        self.variants: Mapping[str, Scorer] = {CHAMPION: champion, **challengers}
        self._versions = self._versions_now()
        self._file = routing_file
        self._seen: FileStamp | None = None
        self._live = self._of(Routing.of([*challengers]))
        if routing_file is not None and routing_file.exists():
            self._read_routing(routing_file)

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        """One reply or refusal for each request.

        What a challenger refuses or fails at is answered by the champion, and the reply says so: users must
        not suffer from an experiment. What the champion fails at is a fault, as without challengers.
        """
        live = self._live
        variant_R = [live.routing.variant_of(request.user_id, live.salt) for request in requests]
        reply_R: list[ScoreReply | RequestError | None] = [None] * len(requests)
        for variant in sorted(set(variant_R) - {CHAMPION}):
            mine = [at for at, of_request in enumerate(variant_R) if of_request == variant]
            for at, reply in zip(mine, self.score_as(variant, [requests[at] for at in mine]), strict=True):
                if isinstance(reply, ScoreReply) and np.isfinite(reply.scores_N).all():
                    reply_R[at] = self._routed(reply, live, variant)
        left = [at for at, reply in enumerate(reply_R) if reply is None]
        answered = self.variants[CHAMPION].score_many([requests[at] for at in left]) if left else []
        for at, reply in zip(left, answered, strict=True):
            if isinstance(reply, ScoreReply):
                instead_of = None if variant_R[at] == CHAMPION else variant_R[at]
                reply = self._routed(reply, live, CHAMPION, instead_of=instead_of)
            reply_R[at] = reply
        return [reply for reply in reply_R if reply is not None]

    def score_as(
        self, variant: str, requests: Sequence[ScoreRequest]
    ) -> list[ScoreReply | RequestError | None]:
        """What one variant makes of requests, one by one if they fail together; None for a failure."""
        try:
            return [*self.variants[variant].score_many(requests)]
        except Unavailable:  # whoever heals it says so, once
            return [None] * len(requests)
        except Exception as error:
            if len(requests) > 1:
                return [reply for one in requests for reply in self.score_as(variant, [one])]
            # Its message may quote the request.
            _log.error("%s failed at a request: %s", variant, type(error).__name__)
            return [None]

    def reload_if_changed(self) -> bool:
        """Look whether a package has a new generation, and whether the routing is another one.

        Returns:
            Whether the routing was read.
        """
        for scorer in self.variants.values():
            scorer.reload_if_changed()
        versions = self._versions_now()
        if versions != self._versions:  # a challenger that could not be opened is there now
            self._versions = versions
            self._live = replace(self._of(self._live.routing), refused=self._live.refused)
        if self._file is None or file_stamp(self._file) == self._seen:
            return False
        self._read_routing(self._file)
        return True

    def facts(self) -> Mapping[str, Any]:
        """Those of the champion, and beside them `variants` with those of each, and `routing`."""
        live, facts = self._live, {name: scorer.facts() for name, scorer in self.variants.items()}
        refused = [why for one in facts.values() if (why := one.get("refused_generation")) is not None]
        return {
            **facts[CHAMPION],
            "refused_generation": next(iter(refused), None),
            "variants": {name: dict(one) for name, one in facts.items()},
            "routing": {
                **live.routing.model_dump(mode="json", exclude={"format"}),
                "salt": live.salt,
                "refused": live.refused,
            },
        }

    def _routed(
        self, reply: ScoreReply, live: _Live, variant: str, *, instead_of: str | None = None
    ) -> ScoreReply:
        shadows = tuple(
            Shadow(name, partial(self.score_as, name)) for name in live.routing.shadows_of(variant)
        )
        return replace(reply, variant=variant, salt=live.salt, instead_of=instead_of, shadows=shadows)

    def _versions_now(self) -> dict[str, str]:
        return {name: str(one.facts().get("model_version", "")) for name, one in self.variants.items()}

    def _of(self, routing: Routing) -> _Live:
        return _Live(routing, routing.salt or salt_of(self._versions))

    def _read_routing(self, path: Path) -> None:
        self._seen = file_stamp(path)
        try:
            routing = Routing.read(path)
            strangers = sorted(routing.names - {*self.variants})
            if strangers:
                there_are = ", ".join(self.variants)
                raise RoutingError(
                    f"{path} names {', '.join(strangers)}, but there are {there_are}; {_ADVICE}"
                )
        except RoutingError as error:
            self._live = replace(self._live, refused=str(error))
            _log.error("keeping the routing as it was: %s", error)
            return
        self._live = self._of(routing)
        _log.info("routing is now %s", routing.model_dump_json())


def salt_of(versions: Mapping[str, str]) -> str:
    """The salt that follows from the variants and their model versions: a new challenger draws users anew."""
    text = "\n".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return hashlib.blake2b(text.encode(), digest_size=_SALT_BYTES).hexdigest()
