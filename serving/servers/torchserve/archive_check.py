"""One answer as a TorchServe worker gives it: `python -m ….torchserve.archive_check ARCHIVE NAME < body`.

A program of its own, because a worker is one, too: what only works inside the process that built an archive
(a module that is already imported, a path) fails here with its true text.
"""

import importlib
import sys
import tempfile
import zipfile
from pathlib import Path

from serving.servers.torchserve.archive import HANDLER_NAME
from serving.servers.torchserve.files import METRICS_NAME, metrics_text


def answer_once(archive: Path, *, name: str, body: bytes) -> None:
    """Load an archive by TorchServe's loader and ask it once.

    Raises:
        RuntimeError: the status is not 200.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = archive
        if archive.is_file():
            folder = Path(scratch) / "archive"
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
        sys.path.insert(0, str(folder))
        # TorchServe's loader takes a failed import for a missing file and hides the error behind another one.
        handler = importlib.import_module(Path(HANDLER_NAME).stem)
        for one in vars(handler).values():  # a server would go on trying what fails here
            if isinstance(one, type) and hasattr(one, "heals"):
                one.heals = False
        from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
        from ts.model_loader import TsModelLoader

        metrics_path = Path(scratch) / METRICS_NAME
        metrics_path.write_text(metrics_text(), encoding="utf-8")
        metrics = MetricsCacheYamlImpl(str(metrics_path))
        metrics.initialize_cache()
        metrics.model_name = name
        service = TsModelLoader().load(name, str(folder), HANDLER_NAME, None, 1, None, True, metrics)
        service.set_cl_socket(None)
        service.predict([_frontend_request(body)])
        status, _ = service.context.get_response_status(0)
    if status != 200:
        raise RuntimeError(f"the example request was answered with status {status}")


def _frontend_request(body: bytes) -> dict[str, object]:
    """One request as TorchServe's frontend hands it to a worker."""
    parameter = {"name": "body", "contentType": "application/json", "value": bytearray(body)}
    return {"requestId": b"check", "headers": [], "parameters": [parameter]}


if __name__ == "__main__":
    answer_once(Path(sys.argv[1]), name=sys.argv[2], body=sys.stdin.buffer.read())
