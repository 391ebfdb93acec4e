"""Each example does what it says, on a tiny marketplace."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import experiments
from experiments.examples import bring_your_own_vectors, rank_your_log, score_a_request


@pytest.mark.parametrize("example", [rank_your_log, bring_your_own_vectors, score_a_request])
def test_an_example_is_shorter_than_sixty_lines_and_imports_nothing_of_ours_but_the_api(
    example: ModuleType,
) -> None:
    source = inspect.getsource(example)
    assert len(source.splitlines()) < 60
    ours = ("features", "embeddings", "ranking", "serving", "experiments")
    imported = {line.split()[1] for line in source.splitlines() if line.startswith(("from ", "import "))}
    assert {name for name in imported if name.split(".")[0] in ours} == {"experiments.api"}


def test_a_log_is_ranked_better_than_by_chance(ranked: tuple[Path, float]) -> None:
    assert 0.55 < ranked[1] < 0.95


def test_a_log_in_csv_files_gives_the_same_auc_as_in_parquet(
    log: Path, ranked: tuple[Path, float], tmp_path: Path
) -> None:
    for path in log.glob("*.parquet"):
        table = pq.read_table(path)
        for name in ("timestamp", "click_timestamp"):
            if name in table.column_names:
                text = [moment and moment.isoformat() for moment in table[name].to_pylist()]
                table = table.set_column(table.column_names.index(name), name, pa.array(text, pa.string()))
        csv.write_csv(table, tmp_path / f"{path.stem}.csv")
    assert rank_your_log.rank(tmp_path, tmp_path / "out") == ranked[1]


def test_vectors_that_say_nothing_change_the_auc_little(
    log: Path, ranked: tuple[Path, float], tmp_path: Path
) -> None:
    ids = pq.read_table(log / "products.parquet", columns=["product_id"])["product_id"]
    noise_ND = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    pq.write_table(pa.table({"product_id": ids, "vector": list(noise_ND)}), tmp_path / "noise.parquet")
    out = tmp_path / "sweep"
    difference = bring_your_own_vectors.compare(
        ranked[0] / "features", tmp_path / "noise.parquet", out, seeds=(1, 2)
    )
    assert abs(difference) < 0.05
    assert "with and without my vectors" in (out / "report.html").read_text(encoding="utf-8")


def test_a_request_gets_a_probability_for_each_candidate_best_first(
    log: Path, ranked: tuple[Path, float], tmp_path: Path
) -> None:
    request, reply = score_a_request.score(ranked[0] / "dcn", log, tmp_path / "package")
    scores_N = reply.scores_N[reply.order_N]
    assert len(scores_N) == len(request.candidates) > 0
    assert (np.diff(scores_N) <= 0).all()
    assert ((scores_N > 0) & (scores_N < 1)).all()


def test_the_python_of_the_readme_ranks_a_log(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = Path(experiments.__file__).parents[1] / "README.md"
    (block,) = re.findall(
        r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "my_log").symlink_to(log)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(readme), "exec"), {})
    auc = re.fullmatch(r"AUC on the last seven days: (0\.\d{3})", capsys.readouterr().out.strip())
    assert auc is not None
    assert 0.55 < float(auc[1]) < 0.95
