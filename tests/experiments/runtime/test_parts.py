"""Parts of some work are together the whole, and no two share a piece."""

import pytest

from experiments.runtime.parts import Part


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_parts_are_together_the_whole_and_share_nothing(count):
    work = list(range(7))
    parts = [Part(number, count).of(work) for number in range(1, count + 1)]
    assert sorted(piece for part in parts for piece in part) == work
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_is_read_as_it_is_written():
    assert Part.parse("2/8") == Part(2, 8)
    assert Part.parse(" 8 / 8 ") == Part(8, 8)
    assert str(Part(2, 8)) == "2/8"


@pytest.mark.parametrize("text", ["0/8", "9/8", "1", "1/0", "a/b", "-1/8", "1/8/2", ""])
def test_what_is_no_part_is_refused_with_the_form_that_would_do(text):
    with pytest.raises(ValueError, match="write i/n with i from 1 to n, such as 1/8"):
        Part.parse(text)
