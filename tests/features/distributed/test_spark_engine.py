"""Spark gives what one machine gives, and says in a sentence why it cannot start or went no further."""

import importlib.util
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest

from features.distributed.build import build_distributed
from features.distributed.engine import Stage
from features.distributed.spark_engine import SparkEngine, SparkError, require_spark
from features.offline.build import build
from features.offline.log_checks import LogError
from tests.features.distributed.in_process_engine import InProcessEngine
from tests.features.distributed.test_build import without_time
from tests.features.small_logs import CONFIG, random_tables, write_tables

ROWS = pa.schema([("bucket", pa.int32())])
NO_SPARK = importlib.util.find_spec("pyspark") is None or shutil.which("java") is None


@pytest.mark.spark
@pytest.mark.skipif(NO_SPARK, reason="needs pyspark and Java 17: make setup EXTRA=spark")
def test_spark_writes_the_same_bytes_and_hands_on_what_is_refused(tmp_path):
    """One session for all of it: starting one takes longer than everything else here."""
    data = write_tables(tmp_path / "data", random_tables(1, nobody=0.1))
    one = build(data, tmp_path / "one", CONFIG)
    seen: list[tuple[str, int, int]] = []
    with SparkEngine.local_or_cluster(
        "local[2]", driver_memory="1g", progress=lambda *stage: seen.append(stage)
    ) as engine:
        many = build_distributed(data, tmp_path / "many", CONFIG, engine, buckets=3, hot_rows=60)
        assert without_time(one) == without_time(many)
        ended = {name for name, done, total in seen if done == total}
        assert ended >= {"counting ids", "counting", "learning", "adding up", "writing rows"}

        def one_row(task: int) -> pa.Table:
            return pa.table([[task]], schema=ROWS)

        stages = [Stage(lambda rows: rows, ROWS)] * 3
        assert len(engine.run("moving", 5, one_row, ROWS, stages)) == 5
        plan = engine.plan(5, one_row, ROWS, stages)
        assert plan.count("Exchange hashpartitioning(bucket") == 3, "a shuffle for each stage"
        assert "Join" not in plan

        def refuse(task: int) -> pa.Table:
            raise LogError(f"task {task} found a row that is none; correct it")

        with pytest.raises(LogError, match=r"^task 0 found a row that is none; correct it$"):
            engine.run("refusing", 1, refuse, ROWS, ())

        def stumble(task: int) -> pa.Table:
            return {}[task]

        with pytest.raises(SparkError, match="KeyError: 0"):
            engine.run("stumbling", 1, stumble, ROWS, ())


def test_without_pyspark_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SparkError, match=r"pip install 'dashclip-ranker\[spark\]'"):
        require_spark()


def test_without_java_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(SparkError, match="Java 17 or newer, and no `java` is on the PATH"):
        require_spark()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    require_spark()


def test_no_distributed_module_needs_pyspark_before_a_session_is_asked_for(tmp_path):
    """A package of that name that cannot be imported stands for one that is not there."""
    (tmp_path / "pyspark.py").write_text("raise ImportError('not now')")
    code = "import features.distributed.build, features.distributed.spark_engine, experiments.cli"
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"], check=True
    )


def test_a_failed_task_leaves_nothing_and_keeps_the_old_feature_set(tmp_path):
    data = write_tables(tmp_path / "data", random_tables(2))
    build(data, tmp_path / "features", CONFIG)
    before = (tmp_path / "features" / "manifest.json").read_bytes()
    engine = InProcessEngine()

    def fail(name, *rest):
        if name == "writing rows":
            raise SparkError("an executor was lost")
        return InProcessEngine.run(engine, name, *rest)

    engine.run = fail
    with pytest.raises(SparkError, match="an executor was lost"):
        build_distributed(data, tmp_path / "features", CONFIG, engine)
    assert (tmp_path / "features" / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "features"]
