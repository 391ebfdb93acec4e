"""Our feature build on Spark, in a process of its own; says what all processes of it cost.

`python -m experiments.benchmarks.features.spark_runner LOGS OUT CONFIG MASTER MEMORY`, CONFIG as of
`build_runner`. The last line of the output is JSON.
"""

import contextlib
import json
import sys
from pathlib import Path

import psutil

from experiments.benchmarks.features.build_runner import config_of
from features.distributed.build import build_distributed
from features.distributed.spark_engine import SparkEngine


def main(logs: str, out: str, config: str, master: str, memory: str) -> None:
    """Build features from `logs` into `out`."""
    with SparkEngine.local_or_cluster(master, driver_memory=memory) as engine:
        start_cpu_s = _tree_cpu_s()
        build_distributed(Path(logs), Path(out), config_of(config), engine)
        end_cpu_s = _tree_cpu_s()
    print(json.dumps({"cpu_s": end_cpu_s, "start_cpu_s": start_cpu_s}))


def _tree_cpu_s() -> float:
    """Of this process, Java and the Python workers: nobody waits for Java, so its parent never learns it."""
    total = 0.0
    root = psutil.Process()
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    main(*sys.argv[1:])
