"""Apache Spark as the engine of a feature build: `mapInArrow`, then a `groupBy(...).applyInArrow` a shuffle.

pyspark and Java are needed only once a session is asked for.
"""

import importlib.util
import os
import re
import shutil
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from features.distributed.engine import BUCKET, Stage
from features.offline.log_checks import LogError
from features.progress import Progress, silent

_EXTRA = "pip install 'dashclip-ranker[spark]'"
_ARROW_ROWS = 65_536
#: An error that a task raised, at the end of the traceback that Spark hands on.
_LOG_ERROR = re.compile(r"features\.offline\.log_checks\.LogError: (.*)")
_PROGRESS_S = 1.0


class SparkError(ValueError):
    """Spark cannot start, or stopped a build; says why and what to do."""


class SparkEngine:
    """A session as a `features.distributed.engine.Engine`."""

    def __init__(self, session: Any, *, progress: Progress = silent) -> None:
        self._session = session
        self._report = progress

    @classmethod
    @contextmanager
    def local_or_cluster(
        cls, master: str | None = None, *, driver_memory: str = "2g", progress: Progress = silent
    ) -> Iterator["SparkEngine"]:
        """An engine on a session of its own, or on the one that runs already (a notebook, `spark-submit`).

        Args:
            master: such as `local[4]`, `yarn` or `spark://host:7077`; None takes what Spark is configured
                for, and `local[*]` where it is for nothing.
            driver_memory: heap of the driver, which on `local` is that of the tasks, too.

        Raises:
            SparkError: pyspark or Java is missing, or the session does not start.
        """
        require_spark()
        from pyspark.sql import SparkSession

        running = SparkSession.getActiveSession()
        if running is not None:
            yield cls(running, progress=progress)
            return
        builder = SparkSession.builder.appName("dashclip features build")
        settings = {
            "spark.sql.adaptive.enabled": "false",
            "spark.driver.memory": driver_memory,
            "spark.driver.maxResultSize": "0",  # the ids of the log come to the driver, however many
        }
        if master is not None:
            builder = builder.master(master)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if master is not None and master.startswith("local"):
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            settings |= {
                "spark.driver.bindAddress": "127.0.0.1",
                "spark.driver.host": "127.0.0.1",
                "spark.ui.enabled": "false",
                "spark.ui.showConsoleProgress": "false",
                "spark.log.level": "ERROR",
            }
        for name, value in settings.items():
            builder = builder.config(name, value)
        try:
            session = builder.getOrCreate()
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SparkError(
                f"Spark does not start on {master or 'its configured master'}: {reason}; "
                "it needs Java 17 or newer and a master that answers"
            ) from error
        try:
            yield cls(session, progress=progress)
        finally:
            session.stop()

    @property
    def parallelism(self) -> int:
        """Cores that Spark has."""
        return int(self._session.sparkContext.defaultParallelism)

    def run(
        self,
        name: str,
        tasks: int,
        first: Callable[[int], pa.Table],
        schema: pa.Schema,
        stages: Sequence[Stage],
    ) -> pa.Table:
        """See `Engine.run`."""
        with self._configured(tasks), self._watched(name):
            try:
                table: pa.Table = self._frame(tasks, first, schema, stages).toArrow()
            except Exception as error:
                raise _as_sentence(error) from error
        return table.cast(stages[-1].schema if stages else schema)

    def plan(
        self, tasks: int, first: Callable[[int], pa.Table], schema: pa.Schema, stages: Sequence[Stage]
    ) -> str:
        """Spark's plan of a run: one `Exchange hashpartitioning(bucket)` for each stage."""
        with self._configured(tasks):
            frame = self._frame(tasks, first, schema, stages)
            return str(frame._jdf.queryExecution().executedPlan().toString())

    def _frame(
        self, tasks: int, first: Callable[[int], pa.Table], schema: pa.Schema, stages: Sequence[Stage]
    ) -> Any:
        from pyspark.sql.pandas.types import from_arrow_schema

        frame = self._session.range(0, tasks, 1, tasks).mapInArrow(_Tasks(first), from_arrow_schema(schema))
        for stage in stages:
            frame = frame.groupBy(BUCKET).applyInArrow(
                _group(stage.function), from_arrow_schema(stage.schema)
            )
        return frame

    @contextmanager
    def _configured(self, tasks: int) -> Iterator[None]:
        """Partitions of a shuffle while the block runs; the session may be somebody else's."""
        name = "spark.sql.shuffle.partitions"
        before = self._session.conf.get(name)
        # Fewer than buckets: hashing puts some buckets together, and many even that out.
        self._session.conf.set(name, str(max(self.parallelism, tasks)))
        try:
            with warnings.catch_warnings():
                # Spark says so of pandas 3, of which nothing is used here.
                warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
                yield
        finally:
            self._session.conf.set(name, before)

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Report finished tasks while the block runs."""
        context = self._session.sparkContext
        group, ended, total = uuid.uuid4().hex, threading.Event(), 1
        context.setJobGroup(group, f"dashclip: {name}")

        def watch() -> None:
            nonlocal total
            tracker = context.statusTracker()
            while not ended.wait(_PROGRESS_S):
                done = tasks = 0
                for job in tracker.getJobIdsForGroup(group):
                    info = tracker.getJobInfo(job)
                    for stage in info.stageIds if info else ():
                        about = tracker.getStageInfo(stage)
                        done += about.numCompletedTasks if about else 0
                        tasks += about.numTasks if about else 0
                if tasks:
                    total = tasks
                    self._report(name, min(done, total - 1), total)

        self._report(name, 0, total)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        self._report(name, total, total)


class _Tasks:
    """Runs `first` for the numbers that Spark hands to a partition."""

    def __init__(self, first: Callable[[int], pa.Table]) -> None:
        self._first = first

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch.column(0).to_pylist():
                yield from self._first(task).to_batches(max_chunksize=_ARROW_ROWS)


def _group(function: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    """A plain function: Spark reads the number of arguments off its signature."""

    def apply(rows: pa.Table) -> pa.Table:
        return function(rows)

    return apply


def require_spark() -> None:
    """Raises SparkError: pyspark is not installed, or there is no Java."""
    if importlib.util.find_spec("pyspark") is None:
        raise SparkError(f"features on Spark need the package pyspark, which is not installed: {_EXTRA}")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise SparkError(
            "Spark needs Java 17 or newer, and no `java` is on the PATH; install it (Debian: "
            "`apt install openjdk-17-jre-headless`) or set JAVA_HOME"
        )


def _as_sentence(error: Exception) -> Exception:
    """What a task raised as if it had been raised here; else the cause in a line."""
    text = str(error)
    refused = _LOG_ERROR.search(text)
    if refused:
        return LogError(refused[1].strip())
    causes = [
        line.strip() for line in text.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b.*: ", line)
    ]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = causes[-1] if causes else (lines[0] if lines else type(error).__name__)
    return SparkError(
        f"Spark stopped the build: {cause}; give it more memory if it ran out of it, or look into its log"
    )
