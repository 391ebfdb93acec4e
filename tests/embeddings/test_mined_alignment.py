"""Stage 2 in two rounds on the miniature catalogue: what is kept, what goes on, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import embeddings.mined_alignment as mined_alignment
from embeddings.dashclip import DashClipEncoder
from embeddings.encode import Encoded
from embeddings.grades import read_grades
from embeddings.holdout import VALIDATION, HoldoutConfig, query_roles
from embeddings.mined_alignment import align_with_mining
from embeddings.mining import MiningConfig
from embeddings.relevance import TupleConfig, TupleSet
from embeddings.stages import InputConfig, StageError, StageRun, align
from embeddings.training import Report
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import align_config, small_encoder

INPUTS = InputConfig(
    holdout=HoldoutConfig(test_query_share=0.1, validation_query_share=0.2, test_product_share=0.0)
)
MINING = MiningConfig(neighbours=12, mined_share=0.67)


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("small") / "data")


def run(data: Path, folder: Path, **changes) -> StageRun:
    arguments = {
        "start": small_encoder(),
        "config": align_config(epochs=2, batch_size=8),
        "mining": MINING,
        "tuple_config": TupleConfig(max_positives=2, negatives=3),
        "inputs": INPUTS,
    }
    return align_with_mining(data, folder, **(arguments | changes))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run(data, tmp_path_factory.mktemp("runs") / "whole")


def record(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def test_the_second_round_goes_on_from_the_first_with_its_hard_negatives(
    data: Path, finished: StageRun
) -> None:
    folder = finished.folder
    first = DashClipEncoder.load(folder / "round-1" / "encoder")
    settings, earlier = record(folder)["settings"], record(folder / "round-1")["settings"]
    assert settings["start"] == first.encoder_id != finished.encoder.encoder_id
    assert settings["tuple_source"] == {"mining": MINING.model_dump(mode="json")}
    assert (settings["config"]["epochs"], earlier["config"]["epochs"]) == (1, 1)
    assert "tuple_source" not in earlier
    roles_Q = query_roles(read_grades(data).queries, INPUTS.holdout)
    for name in ("train", "validation"):
        drawn = TupleSet.open(folder / "round-1" / "tuples" / name)
        mined = TupleSet.open(folder / "tuples" / name)
        assert mined.report.mining is not None
        assert drawn.report.mining is None
        np.testing.assert_array_equal(mined.tuples_NC[:, :2], drawn.tuples_NC[:, :2])
        used = roles_Q[mined.tuples_NC[:, 1:]]
        assert set(used.ravel().tolist()) == {VALIDATION if name == "validation" else 0}
    assert TupleSet.open(folder / "tuples" / "train").report.mining.mean_mined_per_tuple > 0  # type: ignore[union-attr]
    assert not (folder / "mining").exists(), "vectors are of no use any more"


def test_a_finished_folder_is_opened(data: Path, finished: StageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mined_alignment, "mine_tuples")
    again = run(data, finished.folder)
    assert again.outcome is None
    assert again.encoder.encoder_id == finished.encoder.encoder_id


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    data: Path, finished: StageRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"

    def killed_after_step_2(report: Report) -> None:
        if report.step == 2:
            raise Killed

    with pytest.raises(Killed):
        run(data, folder, show=killed_after_step_2)
    assert not (folder / "round-1" / "training.json").exists()
    with pytest.raises(Killed):
        run(data, folder, show=killed_after_step_2)  # the first round is past its step 2 by now
    assert (folder / "round-1" / "training.json").exists()
    assert (folder / "mining").exists()

    encoded: list[int] = []
    encode = mined_alignment.encode_products

    def counted(*arguments, **options) -> Encoded:
        result = encode(*arguments, **options)
        encoded.append(result.encoded)
        return result

    monkeypatch.setattr(mined_alignment, "encode_products", counted)
    steps: list[int] = []
    whole = run(data, folder, show=lambda report: steps.append(report.step))
    assert encoded == [0, 0], "vectors are kept, for training and for validation tuples"
    assert steps[0] == 3, "so are the checkpoints of the second round"
    assert whole.encoder.encoder_id == finished.encoder.encoder_id


def test_a_folder_of_other_rounds_is_refused(data: Path, finished: StageRun, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="another tuple_source"):
        run(data, finished.folder, mining=MINING.model_copy(update={"neighbours": 5}))
    with pytest.raises(StageError, match="another config"):
        run(data, finished.folder, config=align_config(epochs=4, batch_size=8))
    with pytest.raises(ValueError, match="at least 2 epochs"):
        run(data, tmp_path / "one", config=align_config(epochs=1))
    plain = tmp_path / "plain"
    align(
        data,
        plain,
        start=small_encoder(),
        config=align_config(epochs=1),
        tuple_config=TupleConfig(max_positives=2, negatives=3),
        inputs=INPUTS,
    )
    with pytest.raises(StageError, match="a finished run without mining"):
        run(data, plain)
