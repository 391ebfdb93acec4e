"""A model's grades may be drawn anew for each training of stage 2."""

from pathlib import Path

import pytest

import embeddings.stages.graded_inputs
from embeddings.relevance.sampling import TupleConfig
from embeddings.stages.alignment import AlignConfig
from embeddings.stages.runs import align
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import small_encoder


@pytest.mark.parametrize("draw, expected", [(False, None), (True, 7)])
def test_stage_2_draws_grades_with_its_seed_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: bool, expected: int | None
) -> None:
    data = write_small_catalog(tmp_path / "data", products=6)
    asked: list[int | None] = []

    def noted(*_: object, draw_seed: int | None, **__: object) -> None:
        asked.append(draw_seed)
        raise InterruptedError

    monkeypatch.setattr(embeddings.stages.graded_inputs, "read_grades", noted)
    config = AlignConfig(epochs=1, batch_size=2, learning_rate=0.1, seed=7)
    with pytest.raises(InterruptedError):
        align(
            data, tmp_path, start=small_encoder(), config=config, tuple_config=TupleConfig(draw_grades=draw)
        )
    assert asked == [expected]
