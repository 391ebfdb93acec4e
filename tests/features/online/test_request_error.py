"""What a client reads when its request cannot be scored."""

import pickle

from features.online.request import LONGEST_ECHO, RequestError


def test_the_sentence_names_the_field_what_came_and_what_to_do() -> None:
    error = RequestError("candidate_columns.price", "NaN", "send finite numbers, or leave the column out")
    assert str(error) == "candidate_columns.price: NaN came; send finite numbers, or leave the column out"
    assert isinstance(error, ValueError)
    assert error.status == 400


def test_too_large_is_told_apart_from_malformed() -> None:
    assert RequestError("candidates", "9,000 ids", "send at most 5,000", status=413).status == 413


def test_a_long_value_is_not_echoed_whole() -> None:
    error = RequestError("query", "x" * 10_000, "send at most 500 characters")
    assert len(error.came) == LONGEST_ECHO
    assert error.came.endswith("…")
    assert len(str(error)) < 300


def test_it_crosses_a_process_boundary_unchanged() -> None:
    error = RequestError("user_id", "a list", "send one id", status=413)
    back = pickle.loads(pickle.dumps(error))
    assert (back.field, back.came, back.advice, back.status, str(back)) == (
        error.field,
        error.came,
        error.advice,
        error.status,
        str(error),
    )
