"""`python -m experiments.benchmarks.worker_runner PACKAGE MODE REQUESTS`: a worker without its server.

MODE `tables` opens the package, reads all of its tables, scores, says "ready" and waits for the end of its
input; `none` does so without any table; `start` prints its times and ends.
"""

import json
import sys
import time
from pathlib import Path

_STARTED = time.perf_counter()


def main(package: Path, mode: str, requests: Path) -> None:
    """Run one mode."""
    import torch

    from serving.compile import load_compiled
    from serving.json_codec import decode_request
    from serving.opening import open_package
    from serving.package_manifest import MODEL

    torch.set_num_threads(1)
    imported = time.perf_counter()
    bodies = requests.read_bytes().splitlines()
    mapped: object = None
    if mode == "none":
        from serving.compile import traced_inputs

        compiled = load_compiled(package / MODEL)
        described = json.loads((package / MODEL / "backend.json").read_text(encoding="utf-8"))
        types = [getattr(torch, name.removeprefix("torch.")) for name in described["tables"]]
        dims = compiled.shape.table_dims
        widths = [
            dims[name.removeprefix("table:")] for name in compiled.shape.tables if name.startswith("table:")
        ]
        semantic = compiled.shape.semantic
        widths += [semantic.dim] if semantic and compiled.shape.reads_products else []
        widths += [2] if compiled.shape.quantised else []
        small = [torch.zeros(8, width, dtype=kind) for width, kind in zip(widths, types, strict=True)]
        inputs = traced_inputs(compiled.shape, small)
        with torch.inference_mode():
            for _ in bodies:
                compiled.program(inputs)
    else:
        predictor, _ = open_package(package)
        opened = time.perf_counter()
        predictor.score(decode_request(bodies[0]))
        if mode == "start":
            scored = time.perf_counter()
            times = {
                "import_s": imported - _STARTED,
                "open_s": opened - imported,
                "first_score_s": scored - opened,
            }
            sys.stdout.write(json.dumps(times) + "\n")
            return
        from experiments.benchmarks.serving_ways import touch_tables

        mapped = touch_tables(predictor)
        for body in bodies:
            predictor.score(decode_request(body))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    del mapped


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
