"""Each user is served by its variant, a bad file changes nothing, and a challenger cannot hurt a request."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.online.request import RequestError, ScoreRequest
from serving.scoring.routed_scorer import ROUTING, RoutedScorer, Routing, RoutingError, salt_of
from serving.scoring.routing import assign
from serving.wire.reply import CHAMPION, ScoreReply, best_first

SALT = "spring"


class Constant:
    """Scores everything alike; 13 breaks it, 14 is refused, 16 scores NaN where `fragile`."""

    def __init__(self, score: float, *, fragile: bool = False) -> None:
        self.score, self.fragile = score, fragile
        self.calls: list[int] = []

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        self.calls.append(len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: ScoreRequest) -> ScoreReply | RequestError:
        ids = request.candidates.to_pylist() if self.fragile else []
        if 13 in ids:
            raise ZeroDivisionError
        if 14 in ids:
            return RequestError("context.x", "1", "leave it out")
        scores_N = np.full(len(request.candidates), np.nan if 16 in ids else self.score, np.float32)
        return ScoreReply(scores_N, best_first(scores_N), f"v{self.score:g}", "000001", "2026-01-01", {})

    def reload_if_changed(self) -> object:
        return None

    def facts(self) -> Mapping[str, Any]:
        return {"model_version": f"v{self.score:g}", "generation": "000001", "as_of": "2026-01-01"}


def asked(user: int | str | None, *candidates: int) -> ScoreRequest:
    return ScoreRequest(user_id=user, query="q", candidates=[*(candidates or (1, 2))])


def routed(file: Path | None = None, **challengers: Constant) -> RoutedScorer:
    return RoutedScorer(Constant(0.25), challengers or {"challenger": Constant(0.75)}, routing_file=file)


def replies_of(scorer: RoutedScorer, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
    replies = scorer.score_many(requests)
    assert all(isinstance(reply, ScoreReply) for reply in replies)
    return replies  # type: ignore[return-value]


def test_each_request_of_a_batch_gets_the_scores_of_its_users_variant(tmp_path: Path) -> None:
    file = tmp_path / ROUTING
    shares = {"challenger": 0.3, CHAMPION: 0.7}
    Routing(shares=shares, salt=SALT).write(file)
    scorer = routed(file)
    replies = replies_of(scorer, [asked(user) for user in range(200)])
    for user, reply in enumerate(replies):
        variant = assign(str(user), SALT, shares)
        assert (reply.variant, reply.salt) == (variant, SALT)
        score = {"challenger": 0.75, CHAMPION: 0.25}[variant]
        assert (reply.scores_N.tolist(), reply.model_version) == ([score] * 2, f"v{score:g}")
    assert {reply.variant for reply in replies} == set(shares)
    for scored in scorer.variants.values():
        assert len(scored.calls) == 1, "a batch is one call for each variant"  # type: ignore[attr-defined]


def test_an_integer_and_a_string_of_the_same_digits_are_one_user(tmp_path: Path) -> None:
    Routing(shares={"challenger": 0.5, CHAMPION: 0.5}, salt=SALT).write(tmp_path / ROUTING)
    scorer = routed(tmp_path / ROUTING)
    as_numbers = [reply.variant for reply in replies_of(scorer, [asked(user) for user in range(50)])]
    as_texts = [reply.variant for reply in replies_of(scorer, [asked(str(user)) for user in range(50)])]
    assert as_numbers == as_texts


@pytest.mark.parametrize("nobody", [CHAMPION, "challenger"])
def test_a_request_without_a_user_goes_to_the_variant_that_is_stated(tmp_path: Path, nobody: str) -> None:
    other = CHAMPION if nobody == "challenger" else "challenger"
    Routing(shares={other: 1.0}, nobody=nobody).write(tmp_path / ROUTING)
    (nobodys, users) = replies_of(routed(tmp_path / ROUTING), [asked(None), asked(1)])
    assert (nobodys.variant, users.variant) == (nobody, other)


def test_without_a_file_the_champion_serves_all(tmp_path: Path) -> None:
    scorer = routed(tmp_path / ROUTING)
    assert {reply.variant for reply in replies_of(scorer, [asked(user) for user in range(50)])} == {CHAMPION}
    assert scorer.facts()["routing"]["refused"] is None


def test_a_replaced_file_is_seen_without_a_restart_and_a_growing_share_moves_nobody_back(
    tmp_path: Path,
) -> None:
    file, users = tmp_path / ROUTING, [asked(user) for user in range(300)]
    scorer = routed(file)
    before: set[int] = set()
    for share in (0.0, 0.1, 0.2, 0.6):
        Routing.of(["challenger"]).with_shares({"challenger": share}).write(file)
        assert scorer.reload_if_changed()
        assert not scorer.reload_if_changed()
        now = {at for at, reply in enumerate(replies_of(scorer, users)) if reply.variant != CHAMPION}
        assert before <= now
        assert abs(len(now) - 300 * share) < 4.5 * (300 * share * (1 - share)) ** 0.5 + 1e-9
        before = now


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "JSON"),
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "object"),
        (b'{"shares": {"champion": 0.5}}', "add up to 0.5"),
        (b'{"shares": {"champion": NaN}}', "share of champion is nan"),
        (b'{"shares": {"champion": 2, "challenger": -1}}', "from 0 to 1"),
        (b'{"shares": {"stranger": 1}}', "names stranger, but there are champion, challenger"),
        (b'{"shares": {"champion": 1}, "nobody": "stranger"}', "stranger"),
        (b'{"shares": {"champion": 1}, "shadow": ["stranger"]}', "stranger"),
        (b'{"shares": {"champion": 1}, "salt": "a b"}', "salt"),
        (b'{"shares": {"champion": 1}, "slat": "a"}', "slat"),
        (b'{"format": 2, "shares": {"champion": 1}}', "format"),
        (None, "cannot be read"),
    ],
)
def test_a_faulty_file_keeps_the_last_good_routing_and_says_why(
    tmp_path: Path, content: bytes | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / ROUTING
    Routing(shares={"challenger": 1.0}).write(file)
    scorer = routed(file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    scorer.reload_if_changed()
    scorer.reload_if_changed()
    assert replies_of(scorer, [asked(1)])[0].variant == "challenger"
    assert why in scorer.facts()["routing"]["refused"]
    assert len([one for one in caplog.records if "keeping the routing" in one.getMessage()]) == 1
    Routing.of(["challenger"]).write(file)
    scorer.reload_if_changed()
    assert replies_of(scorer, [asked(1)])[0].variant == CHAMPION
    assert scorer.facts()["routing"]["refused"] is None


def test_a_faulty_file_at_the_start_leaves_all_to_the_champion(tmp_path: Path) -> None:
    (tmp_path / ROUTING).write_bytes(b"{")
    scorer = routed(tmp_path / ROUTING)
    assert replies_of(scorer, [asked(1)])[0].variant == CHAMPION
    assert scorer.facts()["routing"]["refused"]


def test_a_kill_sends_everybody_to_the_champion_and_ends_shadows(tmp_path: Path) -> None:
    file = tmp_path / ROUTING
    alive = Routing(shares={"challenger": 1.0}, nobody="challenger", shadow=(CHAMPION,))
    alive.model_copy(update={"killed": True}).write(file)
    for reply in replies_of(routed(file), [asked(1), asked(None)]):
        assert (reply.variant, reply.shadows) == (CHAMPION, ())


def test_what_a_challenger_refuses_or_fails_at_is_answered_by_the_champion(tmp_path: Path) -> None:
    Routing(shares={"challenger": 1.0}).write(tmp_path / ROUTING)
    scorer = routed(tmp_path / ROUTING, challenger=Constant(0.75, fragile=True))
    replies = replies_of(scorer, [asked(1, 7), asked(2, 13), asked(3, 14), asked(4, 16), asked(5, 8)])
    assert [reply.scores_N[0] for reply in replies] == [0.75, 0.25, 0.25, 0.25, 0.75]
    drawn = [(reply.variant, reply.instead_of) for reply in replies]
    own, fallen = ("challenger", None), (CHAMPION, "challenger")
    assert drawn == [own, fallen, fallen, fallen, own]


def test_what_the_champion_refuses_or_fails_at_is_as_it_is_without_challengers(tmp_path: Path) -> None:
    scorer = RoutedScorer(Constant(0.25, fragile=True), {"challenger": Constant(0.75)})
    (reply,) = scorer.score_many([asked(1, 14)])
    assert isinstance(reply, RequestError)
    with pytest.raises(ZeroDivisionError):
        scorer.score_many([asked(1, 13)])


def test_shadows_are_all_but_the_variant_that_served(tmp_path: Path) -> None:
    Routing(shares={"a": 0.5, CHAMPION: 0.5}, salt=SALT, shadow=("a", "b")).write(tmp_path / ROUTING)
    scorer = routed(tmp_path / ROUTING, a=Constant(0.5), b=Constant(0.75))
    replies = replies_of(scorer, [asked(user) for user in range(50)])
    expected = {"a": ("b",), CHAMPION: ("a", "b")}
    for reply in replies:
        assert tuple(shadow.variant for shadow in reply.shadows) == expected[str(reply.variant)]
    (scored,) = replies[0].shadows[-1].score([asked(1)])
    assert isinstance(scored, ScoreReply)
    assert scored.scores_N[0] == 0.75


def test_the_salt_follows_from_the_packages_unless_it_is_given(tmp_path: Path) -> None:
    one, same = routed(), routed()
    other = routed(challenger=Constant(0.5))
    salts = [scorer.facts()["routing"]["salt"] for scorer in (one, same, other)]
    assert salts[0] == salts[1] != salts[2]
    assert salt_of({"a": "1", "b": "2"}) == salt_of({"b": "2", "a": "1"}) != salt_of({"a": "2", "b": "1"})


def test_facts_are_those_of_the_champion_with_those_of_each_variant_beside_them() -> None:
    facts = routed().facts()
    assert facts["model_version"] == "v0.25"
    assert {name: one["model_version"] for name, one in facts["variants"].items()} == {
        CHAMPION: "v0.25",
        "challenger": "v0.75",
    }
    assert facts["routing"]["shares"] == {"challenger": 0.0, CHAMPION: 1.0}
    json.dumps(facts)


@pytest.mark.parametrize("name", [CHAMPION, "", "a b", "a/b", "ä", "-a", "a" * 65])
def test_a_name_that_cannot_stand_in_a_metric_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a challenger"):
        RoutedScorer(Constant(0.25), {name: Constant(0.75)})


def test_the_champion_gets_what_challengers_leave() -> None:
    start = Routing.of(["a", "b"])
    grown = start.with_shares({"a": 0.1}).with_shares({"b": 0.2})
    assert dict(grown.shares) == pytest.approx({"a": 0.1, "b": 0.2, CHAMPION: 0.7})
    assert [*grown.shares] == ["a", "b", CHAMPION]
    assert grown.with_shares({"a": 0.8}).shares[CHAMPION] == 0
    for impossible in ({"a": 0.9, "b": 0.2}, {"a": -0.1}, {CHAMPION: 0.5}):
        with pytest.raises(RoutingError):
            start.with_shares(impossible)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ROUTING
    Routing.of(["a"]).write(file)
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        Routing.of(["a"]).with_shares({"a": 0.5}).write(file)
    assert file.read_bytes() == before
    assert Counter(path.name for path in tmp_path.iterdir()) == {ROUTING: 1}
