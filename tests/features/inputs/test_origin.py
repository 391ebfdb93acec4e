"""What a data folder says of itself reaches the feature set, and so every result that is made of it."""

import json
from pathlib import Path

import pytest

from features.feature_set import FeatureSet
from features.inputs.origin import Origin
from features.offline.build import build
from features.schema import SplitConfig
from tests.features.small_logs import CONFIG, random_tables, write_tables


def test_only_what_the_folder_says_is_called_simulated(tmp_path: Path) -> None:
    assert Origin.of(tmp_path) == Origin(simulated=None, constructed=False)
    (tmp_path / "source.json").write_text('{"simulated": false}')
    assert Origin.of(tmp_path).simulated is False
    (tmp_path / "truth").mkdir()
    assert Origin.of(tmp_path).simulated is True


@pytest.mark.parametrize("text", ["", "[1]", '{"constructed": "yes", "simulated": 1}'])
def test_a_description_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "source.json").write_text(text)
    assert Origin.of(tmp_path) == Origin()


@pytest.mark.parametrize("constructed", [True, False])
def test_a_feature_set_knows_that_its_impressions_were_constructed(tmp_path: Path, constructed: bool) -> None:
    data = write_tables(tmp_path / "data", random_tables(5, impressions=200))
    (data / "source.json").write_text(json.dumps({"simulated": False, "constructed": constructed}))
    config = CONFIG.model_copy(update={"split": SplitConfig(validation_days=2, test_days=2)})
    build(data, tmp_path / "features", config, buckets=1, threads=1, memory_limit="200MB")
    assert FeatureSet.open(tmp_path / "features").manifest.data.constructed is constructed
