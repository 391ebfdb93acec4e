"""A worker without its server: `python -m experiments.benchmarks.serving.worker_runner PACKAGE MODE FILE`.

FILE holds the requests. MODE `start` prints how long importing, opening and the first score took; `wait`
reads every page of every table, scores, says "ready" and waits for the end of its input.
"""

import json
import sys
import time
from pathlib import Path

_STARTED = time.perf_counter()


def main(package: Path, mode: str, requests: Path) -> None:
    """Run one mode."""
    import torch

    from serving.scoring.predictor import Predictor
    from serving.wire.json_codec import decode_request

    torch.set_num_threads(1)
    imported = time.perf_counter()
    bodies = requests.read_bytes().splitlines()
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
