"""Config files: every mistake is a sentence that names the key, and every shipped file is what it says."""

from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from experiments.ablation.plan import AblationConfig
from experiments.cli import app
from experiments.commands.config import first_comment, kind_of
from experiments.config import SHIPPED, ConfigError, load_config
from experiments.datasets.own_tables.mapping import ImportMapping
from experiments.encoders.config import EncodersConfig
from experiments.marketplace.config import MarketplaceConfig
from experiments.sweeps.sweep import SweepConfig, plan
from features.schema import FeatureConfig, HistoryConfig, SplitConfig
from ranking.run import RunConfig

MODEL_OF_KIND: dict[str, type[BaseModel]] = {
    "ablation": AblationConfig,
    "encoders": EncodersConfig,
    "sweep": SweepConfig,
    "run": RunConfig,
    "features": FeatureConfig,
    "mapping": ImportMapping,
}
RUN = 'variant = "dcn"\nseed = 1\nfeatures = "features"\n'
SWEEP = 'name = "x"\nfeatures = "features"\n'
NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))


def refusal(folder: Path, text: str, model: type[BaseModel]) -> str:
    """The sentence with which the text is refused, without the path that it must begin with."""
    path = folder / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, model)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("sed = 1", "unknown key 'sed'; did you mean 'seed'?"),
        ("[ranker]\nembeding_dim = 8", "unknown key 'ranker.embeding_dim'; did you mean 'embedding_dim'?"),
        (
            '[ranker.semantic]\nentitys = ["product"]',
            "unknown key 'ranker.semantic.entitys'; did you mean 'entities'?",
        ),
        (
            "[training.optimizer]\nzzz = 1",
            "unknown key 'training.optimizer.zzz'; known keys here: embedding_learning_rate, final_share, "
            "learning_rate, warmup_steps, weight_decay",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_place_and_what_would_do(tmp_path, text, sentence):
    assert refusal(tmp_path, RUN + text, RunConfig) == f": {sentence}"


def test_an_unknown_key_of_a_list_entry_is_refused_with_its_place(tmp_path):
    text = 'sparse = [{ name = "a", column = "a" }, { name = "b", colum = "b" }]'
    message = refusal(tmp_path, text, FeatureConfig)
    assert "unknown key 'sparse.1.colum'; did you mean 'column'?" in message


def test_an_unknown_key_of_a_variant_is_refused_with_its_place(tmp_path):
    message = refusal(tmp_path, SWEEP + '[variants.dcn]\ntitel = "DCN"', SweepConfig)
    assert message == ": unknown key 'variants.dcn.titel'; did you mean 'title'?"


@pytest.mark.parametrize(
    "text, key, came",
    [
        ('[training]\nbatch_size = "many"', "'training.batch_size'", "(got 'many')"),
        ("[ranker]\nembedding_dim = 6", "'ranker.embedding_dim'", "multiple of 4 (got 6)"),
        ('[ranker.semantic]\nentities = ["shop"]', "'ranker.semantic.entities.0'", "(got 'shop')"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_came(tmp_path, text, key, came):
    message = refusal(tmp_path, RUN + text, RunConfig)
    assert key in message
    assert came in message


def test_every_missing_key_is_named(tmp_path):
    assert refusal(tmp_path, 'variant = "dcn"', RunConfig) == (
        ": key 'seed' is missing; key 'features' is missing"
    )


def test_a_rule_between_keys_is_told_without_repeating_the_file(tmp_path):
    message = refusal(tmp_path, SWEEP + "[variants.other]", SweepConfig)
    assert message == ": baseline 'dcn' is not one of the variants ['other']"
    twice = '[ranker.semantic]\nentities = ["query", "query"]'
    assert refusal(tmp_path, RUN + twice, RunConfig) == (
        ": ranker.semantic: entities must differ from each other, got ('query', 'query')"
    )


def test_text_that_is_no_toml_is_refused_with_its_line(tmp_path):
    message = refusal(tmp_path, RUN + "ranker =\n", RunConfig)
    assert "is not valid TOML" in message
    assert "line 4" in message


def test_a_missing_file_gets_the_names_of_the_shipped_ones(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.toml", SweepConfig)
    assert str(tmp_path / "none.toml") in str(caught.value)
    assert ", ".join(NAMES) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_loads_by_its_bare_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = {"run": "run", "encoder_": "ablation", "encoders_": "encoders", "import_": "mapping"}
    kind = next((kind for start, kind in kinds.items() if name.startswith(start)), "sweep")
    kind = "features" if "_features" in name else kind
    config = load_config(Path(name), MODEL_OF_KIND[kind])
    assert kind_of(config.model_dump()) == kind


def test_an_own_file_goes_before_a_shipped_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").write_text(RUN)
    assert load_config(Path("run"), RunConfig).variant == "dcn"


def test_a_folder_of_a_shipped_name_does_not_hide_the_shipped_config(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("run"), RunConfig).variant == load_config(SHIPPED / "run.toml", RunConfig).variant
    with pytest.raises(ConfigError, match="is not a file; give a TOML file"):
        load_config(tmp_path, RunConfig)


def test_the_shipped_run_is_one_of_the_demo_and_has_every_key():
    run = load_config(Path("run"), RunConfig)
    [planned] = [
        cell.config
        for cell in plan(load_config(Path("demo"), SweepConfig), Path("out"))
        if (cell.config.variant, cell.config.seed) == (run.variant, run.seed)
    ]
    assert run.model_dump() == planned.model_dump(), "change run.toml together with demo.toml"
    for part in (run, run.ranker, run.ranker.semantic, run.training, run.training.optimizer, run.sharding):
        assert part is not None
        with_value = {name for name in type(part).model_fields if getattr(part, name) is not None}
        assert with_value <= part.model_fields_set, "a key with a value is left out of run.toml"


@pytest.mark.parametrize("name", [name for name in NAMES if "_features" in name])
def test_every_shipped_feature_set_looks_back_as_far_as_the_paper(name):
    config = load_config(Path(name), FeatureConfig)
    assert config.history is not None
    assert config.counters is not None
    assert config.history.window_days == 84  # paper, section 4.2
    assert config.history.cap == 50
    assert config.counters.windows_days == (1, 7, 28)


def test_the_shipped_features_of_the_marketplace_test_on_the_week_that_it_simulates():
    split = load_config(Path("marketplace_features"), FeatureConfig).split
    for size in ("tiny", "small", "medium", "large"):
        market = MarketplaceConfig.preset(size)
        assert split.test_days == market.test_days == 7
        assert market.history_days == 84  # the first impression has a whole history
    assert split.method == "global"
    assert split.validation_days == 7
    assert split == SplitConfig()
    assert FeatureConfig(sparse=[]).history == HistoryConfig(window_days=84, cap=50)


def test_the_shipped_splits_of_movielens_test_on_a_fifth_of_the_ratings():
    in_days = load_config(Path("movielens_features_global"), FeatureConfig).split
    assert (in_days.method, in_days.validation_days, in_days.test_days) == ("global", 21, 47)
    in_shares = load_config(Path("movielens_features_per_user"), FeatureConfig).split
    assert (in_shares.method, in_shares.validation_share, in_shares.test_share) == ("per_user", 0.1, 0.2)


def test_the_list_has_every_shipped_config_with_its_kind():
    printed = CliRunner().invoke(app, ["config", "list"], env={"COLUMNS": "200"}, catch_exceptions=False)
    lines = printed.output.splitlines()
    for name in NAMES:
        [line] = [line for line in lines if line[1:].startswith(f" {name} ")]
        text = (SHIPPED / f"{name}.toml").read_text()
        assert first_comment(text).split(":")[0] in line
        assert any(kind in line for kind in MODEL_OF_KIND)


@pytest.mark.parametrize("name", NAMES)
def test_a_shown_config_is_the_file_itself(name):
    printed = CliRunner().invoke(app, ["config", "show", name], catch_exceptions=False)
    assert printed.output == (SHIPPED / f"{name}.toml").read_text()
    assert printed.output.startswith("# ")


def test_an_unknown_name_to_show_gets_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        CliRunner().invoke(app, ["config", "show", "dmo"], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"there are avazu, .*demo, encoder_ablation, .*run"):
        CliRunner().invoke(app, ["config", "show", "zzz"], catch_exceptions=False)


def test_a_config_of_another_kind_is_told_who_reads_it():
    with pytest.raises(ConfigError, match="a config that `dashclip sweep` reads; key 'variant' is missing"):
        load_config(Path("demo"), RunConfig)
    with pytest.raises(ConfigError, match="this is a config that `dashclip encode` reads"):
        load_config(Path("encoders_small"), FeatureConfig)
