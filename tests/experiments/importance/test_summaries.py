"""Agreement, correlated pairs, slices, stored parts and the file: each against a case with a known answer."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.importance.agreement import agreement, spearman
from experiments.importance.correlated import (
    CandidatePair,
    canonical_correlation,
    correlated_pairs,
    described,
)
from experiments.importance.measure import default_out, run_folders
from experiments.importance.methods.perturbation import measure_exchanges, row_permutation
from experiments.importance.result import ImportanceFileError, ImportanceReport, methods_named
from experiments.importance.run_parts import Parts
from experiments.importance.slices import MIN_CLASS_ROWS, Partition
from tests.experiments.importance.planted import BY_NAME, FEATURES, planted_layout, random_layout, split_rows
from tests.experiments.reports.importance_reports import made_report
from tests.ranking.random_batches import RANKERS

NAMES = [f"feature {i}" for i in range(12)]
RISING = np.arange(12.0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-5, 5), st.integers(-5, 5)).map(lambda pair: (float(pair[0]), float(pair[1]))),
        min_size=3,
        max_size=30,
    )
)
def test_spearman_is_the_textbooks_with_ties(pairs: list[tuple[float, float]]) -> None:
    a_F, b_F = np.array(pairs).T
    if len(set(a_F)) == 1 or len(set(b_F)) == 1:
        assert spearman(a_F, b_F) == 0.0
    else:
        assert spearman(a_F, b_F) == pytest.approx(stats.spearmanr(a_F, b_F).statistic)


def test_methods_that_rank_alike_agree_whatever_their_units() -> None:
    found = agreement(NAMES, {"permutation": RISING[None], "ablation": np.exp(RISING)[None]})
    (pair,) = found.methods
    assert (pair.spearman, pair.kendall, pair.low, pair.high) == pytest.approx((1, 1, 1, 1))
    assert pair.top_10_shared == 10
    assert found.sentence.startswith("Both methods rank the 12 features alike: Spearman 1.00")
    assert found.seeds == {}


def test_methods_that_disagree_are_said_to_and_the_widest_gap_is_named() -> None:
    found = agreement(NAMES, {"permutation": RISING[None], "ablation": -RISING[None]})
    assert found.methods[0].spearman == -1.0
    assert "Permutation and ablation disagree (Spearman -1.00)" in found.sentence
    assert "'feature 0', number 12 by permutation, number 1 by ablation" in found.sentence.replace(
        "about 'feature 0':", "'feature 0',"
    )


def test_seeds_are_compared_in_all_pairs() -> None:
    runs_RF = np.stack([RISING, RISING * 2, -RISING])  # correlations 1, -1, -1
    found = agreement(NAMES, {"permutation": runs_RF, "ablation": runs_RF[:2]})
    assert found.seeds["permutation"].spearman == pytest.approx(-1 / 3)
    assert found.seeds["ablation"].spearman == pytest.approx(1.0)
    assert "Seeds disagree by permutation (Spearman -0.33)." in found.sentence


def test_canonical_correlation_of_two_numbers_is_the_absolute_pearson_correlation() -> None:
    rng = np.random.default_rng(0)
    x_N = rng.normal(size=500)
    y_N = rng.normal(size=500) - 0.8 * x_N
    bases = [(v - v.mean())[:, None] / np.linalg.norm(v - v.mean()) for v in (x_N, y_N)]
    assert canonical_correlation(*bases) == pytest.approx(abs(np.corrcoef(x_N, y_N)[0, 1]))
    assert canonical_correlation(bases[0], bases[0][:, :0]) == 0.0


def test_a_feature_and_its_copy_are_found_to_share_credit() -> None:
    """Logit = x + copy of x: half of it survives when one is permuted."""
    rows = split_rows(3000, seed=2)
    rows.dense_NF[:, 1] = rows.dense_NF[:, 0]
    layout = planted_layout(dense=(0.3, 0.3, 0.2))
    logit_N = 0.6 * rows.dense_NF[:, 0] + 0.2 * rows.dense_NF[:, 2]
    rows.flags["clicked"][:] = np.random.default_rng(0).random(3000) < 1 / (1 + np.exp(-logit_N))
    features = [BY_NAME[f"dense {i}"] for i in range(3)]
    pairs = correlated_pairs(layout, rows, features, {f.key: 1.0 for f in features}, count=5)
    assert [(pair.a.name, pair.b.name) for pair in pairs] == [("dense 0", "dense 1")]
    assert pairs[0].correlation == pytest.approx(1.0)
    from experiments.importance.model_features import joined

    both = joined("both", [pairs[0].a, pairs[0].b])
    measured = measure_exchanges(
        layout,
        rows,
        [*features, both],
        permutations=[row_permutation(3000, seed=0, repeat=0)],
        masks={"all": np.ones(3000, dtype=bool)},
    )
    loss = {key: by_slice["all"]["auc"][0] for key, by_slice in measured.values.items()}
    text = described(
        pairs[0],
        single_a=loss["feature:dense 0"],
        single_b=loss["feature:dense 1"],
        joint=loss["group:both"],
    )
    assert text.joint > 1.5 * (text.single_a + text.single_b)
    assert text.sentence.endswith("each stands in for the other, so their single importances are too low.")


def test_an_embedding_is_not_called_correlated_with_its_own_similarity() -> None:
    layout, rows = random_layout(RANKERS["product + query + history"]), split_rows(400)
    pairs = correlated_pairs(layout, rows, FEATURES, {f.key: 1.0 for f in FEATURES}, count=100)
    for pair in pairs:
        names = {pair.a.name, pair.b.name}
        assert not any("similarity" in name for name in names) or not any("em" in n[:9] for n in names)


@pytest.mark.parametrize(
    "joint, ending", [(0.02, "they do not hide each other."), (0.01, "the model uses them together.")]
)
def test_a_joint_loss_near_or_below_the_sum_is_said_to_be(joint: float, ending: str) -> None:
    pair = CandidatePair(BY_NAME["dense 0"], BY_NAME["dense 1"], 0.9)
    assert described(pair, single_a=0.01, single_b=0.01, joint=joint).sentence.endswith(ending)


def test_a_history_has_exactly_no_importance_for_users_without_one() -> None:
    layout, rows = random_layout(RANKERS["product + query + history"]), split_rows(800)
    cells_N = rows.flags["slice_has_purchases"].astype(np.int64)
    partition = Partition("purchases", cells_N, {"has purchases": 1, "no purchases": 0})
    found = measure_exchanges(
        layout,
        rows,
        [BY_NAME["purchase history"]],
        permutations=[row_permutation(800, seed=0, repeat=0, cells_N=cells_N, name=partition.name)],
        masks={name: partition.mask(name, 800) for name in partition.slices},
    )
    values = found.values["feature:purchase history"]
    assert values["no purchases"] == {"auc": [0.0], "logloss": [0.0]}
    assert values["has purchases"]["logloss"][0] != 0
    assert MIN_CLASS_ROWS > 1


def test_a_part_is_computed_once_and_a_damaged_one_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict:
        calls.append(1)
        return {"value": 0.1 + 0.2}

    parts = Parts(tmp_path)
    first = parts.get({"a": 1, "b": (2, 3)}, compute)
    assert parts.get({"b": (2, 3), "a": 1}, compute) == first == {"value": 0.1 + 0.2}
    assert len(calls) == 1
    parts.get({"a": 2, "b": (2, 3)}, compute)
    assert len(calls) == 2
    for path in tmp_path.iterdir():
        path.write_text("{", encoding="utf-8")
    assert parts.get({"a": 1, "b": (2, 3)}, compute) == first
    assert len(calls) == 3


def test_without_a_folder_nothing_is_kept() -> None:
    assert Parts(None).get({"a": 1}, lambda: {"x": 1}) == {"x": 1}


def test_a_report_is_read_back_as_it_was_written_one_line_an_entry(tmp_path: Path) -> None:
    report = made_report()
    report.write(tmp_path / "importance.json")
    assert ImportanceReport.read(tmp_path / "importance.json") == report
    lines = (tmp_path / "importance.json").read_text(encoding="utf-8").splitlines()
    assert sum(line.strip().startswith('{"name": ') for line in lines) == len(report.features)


def test_a_file_that_is_no_report_is_refused_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    with pytest.raises(ImportanceFileError, match="does not exist; `dashclip importance` writes it"):
        ImportanceReport.read(path)
    path.write_text('{"metric": "auc"}', encoding="utf-8")
    with pytest.raises(ImportanceFileError, match="command: Field required"):
        ImportanceReport.read(path)


def test_methods_are_named_in_any_order_and_unknown_ones_refused() -> None:
    assert methods_named(" ablation, permutation") == ("permutation", "ablation")
    with pytest.raises(ValueError, match="among permutation, ablation, integrated_gradients, got 'shap'"):
        methods_named("shap")


def test_a_variant_stands_for_its_finished_runs_by_seed(tmp_path: Path) -> None:
    for seed in (10, 9, 1):
        folder = tmp_path / "variant" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if seed != 1:
            (folder / "run.json").write_text("{}")
    (tmp_path / "sweep.json").write_text("{}")
    variant = tmp_path / "variant"
    assert [path.name for path in run_folders([variant])] == ["seed-9", "seed-10"]
    assert default_out([variant]) == tmp_path
    assert default_out([variant / "seed-9", variant / "seed-10"]) == tmp_path
    assert default_out([variant / "seed-9"]) == variant / "seed-9"
    with pytest.raises(ValueError, match="is a whole sweep; name one of its variants, such as"):
        run_folders([tmp_path])
    with pytest.raises(ValueError, match="neither a run"):
        run_folders([tmp_path / "nowhere"])
