"""The three files that TorchServe is started with: config.properties, log4j2.xml and metrics.yaml.

Every value differs from TorchServe's default for a reason that was measured or that is about safety; the
reasons are beside the values.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from features.artifacts import atomic_write_bytes
from serving.feature_log.feature_log import FeatureLogSettings, hand_over
from serving.scoring.routed_scorer import start_routing
from serving.servers.background import LARGE_MODEL
from serving.servers.environment import ALLOWED
from serving.servers.json_lines import ROTATED_KEPT, ROTATED_MB, WORKER_MARK
from serving.servers.measures import GAUGES, Measures
from serving.servers.torchserve.archive import Archive
from serving.servers.trace_settings import TraceSettings

CONFIG_NAME, LOGGING_NAME, METRICS_NAME = "config.properties", "log4j2.xml", "metrics.yaml"
LOOPBACK = "127.0.0.1"
#: Above the limit of our own, whose answer says what to do; TorchServe's has an empty body.
_MAX_REQUEST_BYTES = 6_553_500
#: The broadcast address of loopback: Linux lets a process listen there and nobody connect (ENETUNREACH).
NOWHERE = "127.255.255.255"
#: Large requests that wait: a second's work or two.
LARGE_QUEUE = 8


@dataclass(frozen=True)
class ServerSettings:
    """How one server runs.

    Attributes:
        port: of predictions; management is the next one, then metrics, gRPC, gRPC management and probes.
        workers: processes, one thread each; the tables are shared.
        batch_size: requests that a worker may take at once.
        batch_delay_ms: how long it waits for them, at least 1: TorchServe reads 0 as 100.
        address: what to bind for predictions; anything but loopback wants a reverse proxy in front.
        management_address: for management, by HTTP and gRPC. It always needs a token: without
            `token_authorization` nobody can reach it.
        metrics_address, grpc_address, probe_address: for the others; `address` if None.
        token_authorization: whether predictions need a token.
        token_minutes: how long a token lives.
        large_workers: processes of their own for large requests (`serving/wire/body_weight.py`), at the URL
            of the model with -large; the others then refuse them. 0: all workers take all requests.
        queue_size: requests that may wait; beyond, TorchServe answers 503. Of large ones `LARGE_QUEUE`.
        log: what goes to the feature log, if anything.
        traces: where spans are sent, if anywhere.
        access_log: one line a request, with its peer's address.
    """

    port: int = 8080
    workers: int = 1
    large_workers: int = 0
    batch_size: int = 1
    batch_delay_ms: int = 1
    address: str = LOOPBACK
    management_address: str = LOOPBACK
    metrics_address: str | None = None
    grpc_address: str | None = None
    probe_address: str | None = None
    token_authorization: bool = True
    token_minutes: int = 60
    queue_size: int = 200
    heap_mib: int = 512
    access_log: bool = False
    log: FeatureLogSettings | None = None
    traces: TraceSettings | None = None

    def __post_init__(self) -> None:
        if not 1024 <= self.port <= 65_530:
            raise ValueError(f"port {self.port}: six ports from it on are used; choose 1024 to 65530")
        if not self.token_authorization and self.management_address != LOOPBACK:
            raise ValueError(
                f"management_address is {self.management_address}, but without tokens whoever reaches it "
                "could manage: leave it out, or keep the tokens"
            )
        positive = (
            "workers",
            "batch_size",
            "batch_delay_ms",
            "token_minutes",
            "queue_size",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def deployable(self) -> bool:
        """Whether new packages can be deployed while it runs: by tokens, and from this machine alone.

        TorchServe registers any folder of the machine, and an archive is code.
        """
        return self.token_authorization and self.management_address == LOOPBACK

    @property
    def ports(self) -> dict[str, int]:
        """Each port by its use."""
        uses = ("inference", "management", "metrics", "grpc_inference", "grpc_management", "probes")
        return {use: self.port + offset for offset, use in enumerate(uses)}

    def address_of(self, use: str) -> str:
        """What one use is bound to."""
        if use in ("management", "grpc_management"):
            return self.management_address if self.token_authorization else NOWHERE
        own = {
            "metrics": self.metrics_address,
            "grpc_inference": self.grpc_address,
            "probes": self.probe_address,
        }
        return own.get(use) or self.address

    def url(self, use: str) -> str:
        """http://address:port of one use."""
        return f"http://{self.address_of(use)}:{self.ports[use]}"


def write_server_files(
    folder: Path, archive: Archive, settings: ServerSettings, *, console: bool = False
) -> None:
    """Write the three files into `folder`, and what workers look for there: the routing, the feature log.

    With `console` the logs go to standard output, too.
    """
    atomic_write_bytes(folder / CONFIG_NAME, config_text(folder, archive, settings).encode())
    logging = logging_text(access_log=settings.access_log, console=console)
    atomic_write_bytes(folder / LOGGING_NAME, logging.encode())
    atomic_write_bytes(folder / METRICS_NAME, metrics_text().encode())
    start_routing(folder, archive.challengers())
    hand_over(settings.log, folder)
    TraceSettings.hand_over(settings.traces, folder)
    (folder / LARGE_MODEL).unlink(missing_ok=True)
    if settings.large_workers:
        atomic_write_bytes(folder / LARGE_MODEL, large_name(archive.name).encode())


def rename_version(folder: Path, names: Sequence[str], version: str) -> None:
    """Have config.properties give what it says of models to another version of them."""
    path = folder / CONFIG_NAME
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("models="):
            models = json.loads(line.removeprefix("models="))
            for name in names:
                models[name] = {version: next(iter(models[name].values()))}
            lines[number] = f"models={json.dumps(models)}"
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode())


def config_text(folder: Path, archive: Archive, settings: ServerSettings) -> str:
    """config.properties."""

    def model(workers: int, queue_size: int) -> dict[str, dict[str, int]]:
        return {
            archive.version: {
                "minWorkers": workers,
                "maxWorkers": workers,
                "batchSize": settings.batch_size,
                "maxBatchDelay": settings.batch_delay_ms,
                "jobQueueSize": queue_size,
            }
        }

    models = {archive.name: model(settings.workers, settings.queue_size)}
    if settings.large_workers:
        models[large_name(archive.name)] = model(settings.large_workers, LARGE_QUEUE)
    store = archive.path.resolve().parent
    properties = {
        "model_store": store,
        "load_models": ",".join(f"{name}={archive.path.name}" for name in models),
        "models": json.dumps(models),
        "default_workers_per_model": settings.workers,
        "job_queue_size": settings.queue_size,
        # Safety: tokens, no address beyond the one given, nothing fetched at run time; registered only here.
        "disable_token_authorization": str(not settings.token_authorization).lower(),
        "token_expiration_min": settings.token_minutes,
        "inference_address": settings.url("inference"),
        "management_address": settings.url("management"),
        "metrics_address": settings.url("metrics"),
        "grpc_inference_address": settings.address_of("grpc_inference"),
        "grpc_management_address": settings.address_of("grpc_management"),
        "grpc_inference_port": settings.ports["grpc_inference"],
        "grpc_management_port": settings.ports["grpc_management"],
        "enable_model_api": str(settings.deployable).lower(),
        "allowed_urls": f"file://{store}/.*",
        "install_py_dep_per_model": "false",
        "blacklist_env_vars": f"(?!({ALLOWED})$).*",
        "max_request_size": _MAX_REQUEST_BYTES,
        "max_response_size": _MAX_REQUEST_BYTES,
        # Speed: bodies go to the handler unparsed (the largest gain), no process is spawned for statistics.
        "decode_input_request": "false",
        "disable_system_metrics": "true",
        "metrics_mode": "prometheus",
        "metrics_config": folder.resolve() / METRICS_NAME,
        # The optimising compiler doubled what the first 20,000 requests cost, and saved nothing later.
        "vmargs": f"-Xmx{settings.heap_mib}m -XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def large_name(name: str) -> str:
    """The name of the model whose workers take large requests."""
    return f"{name}-large"


def logging_text(*, access_log: bool, console: bool = False) -> str:
    """log4j2.xml: JSON lines of the workers' words and TorchServe's warnings; nothing per request."""
    appenders = _APPENDERS + (_CONSOLES if console else "")
    text = _LOGGING.replace("ACCESS_LEVEL", "info" if access_log else "off").replace("APPENDERS", appenders)
    if console:
        text = re.sub(r'<AppenderRef ref="(\w+)"/>', r'\g<0><AppenderRef ref="\1_console"/>', text)
    return text


def metrics_text() -> str:
    """metrics.yaml: TorchServe's own counts of requests and waiting, and ours.

    TorchServe has histograms, but not with buckets of one's own: what a histogram is made of are counters.
    """
    ours: dict[str, list[dict[str, object]]] = {"counter": [], "gauge": []}
    for name, labels in {sample.name: [*sample.labels] for sample in Measures().samples()}.items():
        unit = "seconds" if name.endswith(("_seconds", "_seconds_sum")) else "count"
        kind = "gauge" if name in GAUGES else "counter"
        ours[kind].append({"name": name, "unit": unit, "dimensions": ["ModelName", *labels]})
    # Every worker reports this at each request; without an entry it would be a warning each time.
    ours["gauge"].append({"name": "PredictionTime", "unit": "ms", "dimensions": ["ModelName", "Level"]})
    of_requests = {"unit": "Microseconds", "dimensions": ["model_name", "model_version", "hostname"]}
    of_statuses = {"unit": "Count", "dimensions": ["Level", "Hostname"]}
    counters = [{"name": f"Requests{status}XX", **of_statuses} for status in (2, 4, 5)]
    counters.append({"name": "ts_inference_requests_total", **of_requests, "unit": "Count"})
    counters += [
        {"name": f"ts_{what}_latency_microseconds", **of_requests} for what in ("inference", "queue")
    ]
    gauges = [
        {"name": name, "unit": "Milliseconds", "dimensions": ["Level", "Hostname"]}
        for name in ("QueueTime", "WorkerThreadTime")
    ]
    gauges.append(
        {"name": "WorkerLoadTime", "unit": "Milliseconds", "dimensions": ["WorkerName", "Level", "Hostname"]}
    )
    content = {
        "dimensions": [],
        "ts_metrics": {"counter": counters, "gauge": gauges},
        "model_metrics": ours,
    }
    return yaml.safe_dump(content, sort_keys=False)


_LINE = '{"time":"%d{yyyy-MM-dd\'T\'HH:mm:ss.SSS}","level":"%p","logger":"%c","message":"%enc{%m}{JSON}"}%n'
_WORKER_LINE = '{"time":"%d{yyyy-MM-dd\'T\'HH:mm:ss.SSS}",%replace{%m}{^MARK}{}%n'.replace(
    "MARK", WORKER_MARK
)
_APPENDER = """
    <RollingFile name="NAME" fileName="${folder}/NAME.jsonl" filePattern="${folder}/NAME.%i.jsonl.gz">
      FILTER<PatternLayout pattern="LINE"/>
      <SizeBasedTriggeringPolicy size="ROTATED_MB MB"/>
      <DefaultRolloverStrategy max="ROTATED_KEPT"/>
    </RollingFile>""".replace("ROTATED_MB", str(ROTATED_MB)).replace("ROTATED_KEPT", str(ROTATED_KEPT))
_CONSOLE = """
    <Console name="NAME_console" target="SYSTEM_OUT">FILTER<PatternLayout pattern="LINE"/></Console>"""
# What our handler logs comes with its level and its requests' ids; the rest of a worker's output is text.
_MARKED = f'<RegexFilter regex="{WORKER_MARK}.*" onMatch="MATCH" onMismatch="MISMATCH"/>'
_OURS = _MARKED.replace("MISMATCH", "DENY").replace("MATCH", "ACCEPT")
_THEIRS = _MARKED.replace("MISMATCH", "ACCEPT").replace("MATCH", "DENY")
_STREAMS = (
    ("server", "", "${line}"),
    ("access", "", "${line}"),
    ("workers", _OURS, "${worker_line}"),
    ("workers_output", _THEIRS, "${line}"),
)
_APPENDERS, _CONSOLES = (
    "".join(
        form.replace("NAME", name).replace("FILTER", rule).replace("LINE", line)
        for name, rule, line in _STREAMS
    )
    for form in (_APPENDER, _CONSOLE)
)
_LOGGING = f"""<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="warn">
  <Properties>
    <Property name="line">{_LINE.replace('"', "&quot;")}</Property>
    <Property name="worker_line">{_WORKER_LINE.replace('"', "&quot;")}</Property>
    <Property name="folder">${{env:LOG_LOCATION:-logs}}</Property>
  </Properties>
  <Appenders>APPENDERS
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="ACCESS_LEVEL" additivity="false"><AppenderRef ref="access"/></Logger>
    <Logger name="MODEL_LOG" level="info" additivity="false">
      <AppenderRef ref="workers"/><AppenderRef ref="workers_output"/>
    </Logger>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="io.netty" level="error"/>
    <Logger name="org.apache" level="off"/>
    <Root level="warn"><AppenderRef ref="server"/></Root>
  </Loggers>
</Configuration>
"""
