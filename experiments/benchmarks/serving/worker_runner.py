"""A worker without its server: `python -m experiments.benchmarks.serving.worker_runner PACKAGE MODE FILE`.

FILE holds the requests. MODE `start` prints how long importing, opening and the first score took; `wait`
reads every page of every table, scores, says "ready" and waits for the end of its input; `tables:KIND:cold`
opens with tables of that kind, has the page cache forget the package, and times each request once.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

_STARTED = time.perf_counter()


def main(package: Path, mode: str, requests: Path) -> None:
    """Run one mode."""
    import torch

    from serving.scoring.predictor import Predictor
    from serving.wire.json_codec import decode_request

    torch.set_num_threads(1)
    imported = time.perf_counter()
    bodies = requests.read_bytes().splitlines()
    if mode.startswith("tables:"):
        sys.stdout.write(json.dumps(_first_requests(package, mode, bodies)) + "\n")
        return
    predictor = Predictor.load(package)
    opened = time.perf_counter()
    predictor.score(decode_request(bodies[0]))
    if mode == "start":
        first_s = time.perf_counter() - opened
        times = {"import_s": imported - _STARTED, "open_s": opened - imported, "first_score_s": first_s}
        sys.stdout.write(json.dumps(times) + "\n")
        return
    from experiments.benchmarks.serving.ways import touch_tables

    mapped = touch_tables(predictor)
    for body in bodies:
        predictor.score(decode_request(body))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    del mapped


def _first_requests(package: Path, mode: str, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Each request once, in a process that has touched no table for it."""
    from experiments.benchmarks.serving.interleaved import Timing, disturbances, in_turn, time_requests
    from experiments.benchmarks.serving.memory import drop_from_cache
    from serving.scoring.predictor import Predictor
    from serving.wire.json_codec import decode_request

    _, tables, cache = mode.split(":")
    began = time.perf_counter()
    predictor = Predictor.load(package, tables=cast(Any, tables))
    opened_s = time.perf_counter() - began
    predictor.warm_up()
    asked = [decode_request(body) for body in bodies]
    if cache == "cold":
        drop_from_cache(package)
    rounds = [time_requests(in_turn(predictor.score, asked), at_least=len(asked))]
    timing = vars(Timing.of([one.latency_ms for one in rounds]))
    return {**timing, **disturbances(rounds), "opened_s": opened_s, **predictor.facts()["memory"]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
