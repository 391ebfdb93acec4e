"""An id map finds what a dict finds, in memory and from its files, integers and strings alike."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns.id_map import IdMap, IdMapError, _hash_one, _weights

INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def check(id_map, ids, asked):
    """Against a dict, many at once and one by one."""
    position = {value: number for number, value in enumerate(ids)}
    wanted = [position.get(value, -1) for value in asked]
    assert id_map.find(pa.array(asked, type=pa.array(ids).type) if asked else asked).tolist() == wanted
    assert [id_map.find_one(value) for value in asked] == wanted
    assert len(id_map) == len(ids)
    assert id_map.ids().to_pylist() == ids


@given(st.lists(INTEGERS, unique=True, min_size=1), st.lists(INTEGERS))
def test_integers_are_found_as_in_a_dict(ids, others):
    check(IdMap.of(pa.array(ids, pa.int64())), ids, [*ids, *others])


@given(st.lists(TEXTS, unique=True, min_size=1), st.lists(TEXTS))
def test_strings_are_found_as_in_a_dict(ids, others):
    check(IdMap.of(pa.array(ids)), ids, [*ids, *others])


@pytest.mark.parametrize(
    "ids",
    [
        [5, -3, 2**62, 0],
        ["milk", "", "bread é", "m" * 300, "milk\0"],
        [f"product {number}" for number in range(5000)],
    ],
    ids=["integers", "awkward strings", "many strings"],
)
def test_a_written_map_opens_to_the_same(tmp_path, ids):
    IdMap.write(tmp_path / "map", pa.array(ids))
    opened = IdMap.open(tmp_path / "map")
    stranger = [7] if isinstance(ids[0], int) else ["milk\0\0", "mil", "m" * 299, "m" * 5_000_000]
    check(opened, ids, [*reversed(ids), *stranger, *ids])
    with pytest.raises(ValueError, match="read-only"):
        opened.place_K3[0] = 9


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_an_empty_map_knows_no_id(tmp_path, kind):
    IdMap.write(tmp_path / "map", pa.array([], kind))
    opened = IdMap.open(tmp_path / "map")
    asked = pa.array([1, 2], pa.int64()) if kind == pa.int64() else pa.array(["a", ""])
    assert opened.find(asked).tolist() == [-1, -1]
    assert opened.find([]).tolist() == []
    assert len(opened) == len(opened.ids()) == 0


def test_a_null_is_no_known_id():
    assert IdMap.of(pa.array([4, 5])).find(pa.array([5, None, 4])).tolist() == [1, -1, 0]
    assert IdMap.of(pa.array(["a"])).find(pa.array([None, "a"])).tolist() == [-1, 0]
    assert IdMap.of(pa.array(["a"])).find_one(None) == -1


def test_slices_and_other_layouts_of_strings_are_read_right():
    id_map = IdMap.of(pa.array(["zero", "a", "bb", "ccc"]).slice(1))
    assert id_map.find(pa.array(["x", "ccc", "a"], pa.large_string()).slice(1)).tolist() == [2, 0]
    assert id_map.find(np.array(["bb", "zero"])).tolist() == [1, -1]


def test_strings_of_one_hash_are_told_apart(monkeypatch):
    ids = ["one", "two", "six", "seven", "six\0", "one\0\0", ""]
    with monkeypatch.context() as patch:
        patch.setattr("features.columns.id_map._weight", lambda word: 0)
        _weights.cache_clear()
        all_equal = IdMap.of(pa.array(ids))
        assert len(set(all_equal.key_K.tolist())) == 1
        check(all_equal, ids, ["new", *ids, "three"])
    _weights.cache_clear()
    check(IdMap.of(pa.array(ids)), ids, ["new", *ids, "three"])


@given(st.lists(TEXTS, min_size=1, unique=True))
def test_one_text_hashes_as_it_does_among_many(texts):
    id_map = IdMap.of(pa.array(texts))
    order = id_map.place_K3[:, 2]
    assert id_map.key_K.tolist() == [_hash_one(texts[i].encode()) for i in order]


def test_an_id_that_comes_twice_is_refused():
    with pytest.raises(IdMapError, match="id 3 comes twice"):
        IdMap.of(pa.array([3, 1, 3]))
    with pytest.raises(IdMapError, match="id 'b' comes twice"):
        IdMap.of(pa.array(["b", "a", "b"]))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([1, None]), "1 of 2 ids are null"),
        (pa.array([1.5]), "must be integers or strings, got double"),
    ],
)
def test_what_is_no_id_is_refused(ids, message):
    with pytest.raises(IdMapError, match=message):
        IdMap.of(ids)


def test_an_integer_never_equals_a_string():
    with pytest.raises(TypeError, match="kind integer"):
        IdMap.of(pa.array([1])).find(["1"])
    with pytest.raises(TypeError, match="kind text"):
        IdMap.of(pa.array(["1"])).find([1])
    with pytest.raises(TypeError, match="integers, got a string"):
        IdMap.of(pa.array([1])).find_one("1")
    with pytest.raises(TypeError, match="strings, got int"):
        IdMap.of(pa.array(["1"])).find_one(1)


@pytest.mark.parametrize("name", ["key.npy", "place.npy", "content.npy", "id_map.json"])
def test_a_map_that_is_cut_off_is_refused(tmp_path, name):
    IdMap.write(tmp_path, pa.array(["a", "b"]))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    if name == "id_map.json":  # the last byte is a line feed
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IdMapError, match="not a complete id map"):
        IdMap.open(tmp_path)
