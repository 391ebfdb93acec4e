"""What a request may hold, by the schema and by the endpoint: they have to agree."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from experiments.cli import app
from features.online.request import MAX_CANDIDATES, MAX_HISTORY, ScoreRequest
from serving.package.parity import read_requests
from serving.scoring.predictor import Predictor
from serving.servers.endpoint import Body, Endpoint
from serving.wire import arrow_codec, json_codec
from serving.wire.request_schema import schema_of_package


@pytest.fixture(scope="module")
def endpoint(small_run: Path) -> Endpoint:
    return Endpoint(Predictor.load(small_run / "package"))


@pytest.fixture(scope="module")
def described(small_run: Path) -> dict[str, Any]:
    return schema_of_package(small_run / "package")


def valid(described: dict[str, Any], fields: object) -> bool:
    return bool(jsonschema.Draft202012Validator(described["json"]).is_valid(fields))


def status(endpoint: Endpoint, fields: object) -> int:
    (answer,) = endpoint.answer([Body(json.dumps(fields).encode(), json_codec.CONTENT_TYPE)])
    return answer.status


def logged(small_run: Path, at: int = 0) -> dict[str, Any]:
    return json.loads(json_codec.encode_request(read_requests(small_run / "package")[at]))


def test_the_schema_is_one_and_every_recorded_request_is_valid_and_scored(
    small_run: Path, described: dict[str, Any], endpoint: Endpoint
) -> None:
    jsonschema.Draft202012Validator.check_schema(described["json"])
    for at in range(10):
        fields = logged(small_run, at)
        jsonschema.validate(fields, described["json"], jsonschema.Draft202012Validator)
        assert status(endpoint, fields) == 200


_NOT_IDS = st.lists(st.one_of(st.none(), st.booleans(), st.just(0.5)), min_size=1)
_WRONG: dict[str, st.SearchStrategy[Any]] = {
    "candidates": st.one_of(st.none(), st.text(), st.integers(), _NOT_IDS)
    | st.sampled_from([[], [1] * (MAX_CANDIDATES + 1)]),
    "query": st.one_of(st.integers(), st.lists(st.none()), st.text(min_size=1_001, max_size=1_010)),
    "user_id": st.one_of(st.lists(st.none()), st.booleans(), st.sampled_from([1.5, 2**63])),
    "timestamp_us": st.one_of(st.integers(max_value=10**9), st.sampled_from([10**18, "now"])),
    "history": st.sampled_from(["x", [None], [1] * (MAX_HISTORY + 1)]),
    "context": st.sampled_from([[], 3, {"no_such_column": 1}]),
    "candidate_columns": st.sampled_from([[1], {"no_such_column": [1]}, {"price": 3}]),
}
_KNOWN = (*json_codec.OPTIONAL, *json_codec.REQUIRED)
#: A place in a request and what cannot stand there.
_BAD = st.one_of(
    *(st.tuples(st.just(name), wrong) for name, wrong in _WRONG.items()),
    st.tuples(st.text(min_size=1, max_size=5).filter(lambda name: name not in _KNOWN), st.just(1)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_BAD)
def test_what_the_schema_refuses_the_endpoint_refuses(
    small_run: Path, described: dict[str, Any], endpoint: Endpoint, bad: tuple[str, Any]
) -> None:
    fields = {**logged(small_run), bad[0]: bad[1]}
    assert not valid(described, fields)
    assert status(endpoint, fields) in (400, 413)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_live_value_is_allowed_by_both_or_by_neither(
    small_run: Path, described: dict[str, Any], endpoint: Endpoint, data: st.DataObject
) -> None:
    request = logged(small_run)
    bare = {name: request[name] for name in ("user_id", "query", "candidates", "timestamp_us")}
    one = data.draw(st.sampled_from(described["inputs"]))
    value = data.draw(
        st.one_of(
            st.none(),
            st.text(max_size=3).filter(str.strip),
            st.integers(-(2**40), 2**40),
            st.floats(-1e12, 1e12).filter(lambda number: not number.is_integer()),
            st.sampled_from([0.5, 2.5, -0.5, 1e13]),
        )
    )
    fields = {**bare, "context": {one["name"]: value}}
    refused = status(endpoint, fields) != 200
    if one["name"].endswith(tuple("0123456789d")) and any(
        kind in one["name"] for kind in ("clicks", "impressions", "ctr")
    ):
        assert refused or valid(described, fields)  # what belongs together no schema can compare
    else:
        assert refused != valid(described, fields), (one, value)


def test_an_arrow_body_of_the_columns_named_is_scored(
    small_run: Path, described: dict[str, Any], endpoint: Endpoint
) -> None:
    request = read_requests(small_run / "package")[0]
    columns = {column["name"]: column for column in described["arrow"]["columns"]}
    assert str(request.candidates.type) == columns.pop("product_id")["type"]
    nulls = {name: [None] * len(request.candidates) for name, one in columns.items() if one["nullable"]}
    assert nulls
    asked = ScoreRequest(
        user_id=request.user_id, query=request.query, candidates=request.candidates, candidate_columns=nulls
    )
    body = arrow_codec.encode_request(asked)
    (answer,) = endpoint.answer([Body(body, arrow_codec.CONTENT_TYPE)])
    assert answer.status == 200, answer.content
    metadata = pa.ipc.open_stream(body).schema.metadata[b"dashclip"]
    jsonschema.validate(json.loads(metadata), described["arrow"]["metadata"]["dashclip"])


def test_what_is_looked_up_and_what_is_live_is_said(described: dict[str, Any]) -> None:
    absent = {one["name"]: (one["given_for"], one["if_absent"]) for one in described["inputs"]}
    assert absent["price"] == ("candidate", "missing")
    counters = [name for name in absent if name.startswith("query_product_")]
    assert {absent[name][1] for name in counters} == {"looked up"}
    assert {absent[name][0] for name in absent if name.startswith("user_")} == {"request"}
    assert all(math.isfinite(one.get("maximum", 0)) for one in described["inputs"])


def test_the_command_prints_it_and_writes_it(
    small_run: Path, described: dict[str, Any], tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        app, ["schema", str(small_run / "package"), "--out", str(tmp_path / "schema.json")]
    )
    assert done.exit_code == 0, done.output
    assert "candidates" in done.output
    assert json.loads((tmp_path / "schema.json").read_text()) == described
