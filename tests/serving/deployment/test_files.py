"""Every option, port and metric that the files of a deployment name is one that the servers have."""

import json
import re
import shlex
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from experiments import cli
from serving.servers.measures import Measures
from serving.servers.torchserve.files import ServerSettings, metrics_text

FOLDER = Path(__file__).parents[3] / "serving" / "deployment"
PORTS = ServerSettings().ports
#: In a PromQL expression.
_METRIC = re.compile(r"\b(?:dashclip|ts)_\w+")
_LABEL = re.compile(r"(?:by|without) \(([\w, ]+)\)|(\w+)=\"")


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def manifests() -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all(text("kubernetes.yaml"))}


def pod() -> dict[str, Any]:
    return manifests()["Deployment"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def compose() -> dict[str, Any]:
    return yaml.safe_load(text("compose.yaml"))  # type: ignore[no-any-return]


def commands() -> dict[str, list[str]]:
    """Each way in which a file calls `dashclip`, its arguments."""
    unit = re.search(r"^ExecStart=(.*)$", text("dashclip.service"), re.MULTILINE)
    image = re.search(r"^CMD (\[.*\])$", text("Containerfile"), re.MULTILINE)
    assert unit
    assert image
    workers = manifests()["ConfigMap"]["data"]["WORKERS"]
    (init,), (main,) = pod()["initContainers"], pod()["containers"]
    return {
        "unit": shlex.split(unit[1])[1:],
        "image": json.loads(image[1]),
        "pod": [one.replace("$(WORKERS)", workers) for one in main["args"]],
        "init container": init["args"],
        "compose": compose()["services"]["dashclip"]["command"],
        "compose archive": compose()["services"]["archive"]["command"],
    }


def expressions() -> list[str]:
    dashboard = json.loads(text("grafana_dashboard.json"))
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    groups = yaml.safe_load(text("prometheus_alerts.yaml"))["groups"]
    return shown + [rule["expr"] for group in groups for rule in group["rules"]]


def ours() -> set[str]:
    """Metrics of both servers."""
    return {sample.name for sample in Measures().samples()}


@pytest.mark.parametrize("where", commands())
def test_every_command_and_option_is_one_that_dashclip_has(where: str) -> None:
    command, *arguments = commands()[where]
    group = typer.main.get_command(cli.app)
    context = group.commands[command].make_context(command, list(arguments))  # type: ignore[attr-defined]
    if command == "serve":
        assert context.params["foreground"]
        assert context.params["state_dir"] is not None
        assert context.params["port"] == PORTS["inference"]
        assert context.params["manage_address"] == "127.0.0.1"


def test_ports_are_those_of_the_server() -> None:
    (main,) = pod()["containers"]
    declared = {port["name"]: port["containerPort"] for port in main["ports"]}
    wanted = {"predictions": PORTS["inference"], "metrics": PORTS["metrics"], "probes": PORTS["probes"]}
    assert declared == wanted
    service = {port["targetPort"]: port["port"] for port in manifests()["Service"]["spec"]["ports"]}
    assert service == {name: wanted[name] for name in ("predictions", "metrics")}
    assert {
        main[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    } == {"probes"}
    annotations = manifests()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORTS["metrics"])
    published = {one.rsplit(":", 1)[1] for one in compose()["services"]["dashclip"]["ports"]}
    assert published == {str(port) for port in wanted.values()}
    exposed = re.search(r"^EXPOSE (.*)$", text("Containerfile"), re.MULTILINE)
    assert exposed
    assert exposed[1].split() == [str(port) for port in wanted.values()]
    for name in ("Containerfile", "compose.yaml"):
        assert set(re.findall(r"http://127\.0\.0\.1:(\d+)/(?:live|ready)", text(name))) == {
            str(PORTS["probes"])
        }


def test_nothing_runs_as_root_or_writes_where_packages_are() -> None:
    assert re.search(r"^USER \d+$", text("Containerfile"), re.MULTILINE)
    (main,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"]
    assert main["securityContext"]["readOnlyRootFilesystem"]
    read_only = {one["mountPath"]: one.get("readOnly", False) for one in main["volumeMounts"]}
    assert read_only == {"/package": True, "/store": True, "/keys": True, "/state": False, "/tmp": False}
    served = compose()["services"]["dashclip"]
    assert served["read_only"]
    assert [one for one in served["volumes"] if not one.endswith(":ro")] == ["state:/state"]
    assert "User=dashclip" in text("dashclip.service")


def test_a_stop_has_time_to_drain() -> None:
    (main,) = pod()["containers"]
    pause = int(main["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod()["terminationGracePeriodSeconds"] >= pause + 40
    assert "SuccessExitStatus=143" in text("dashclip.service")


def test_the_image_copies_what_the_wheel_holds_and_pins_as_setup_does() -> None:
    copied = set(re.findall(r"^COPY (\w+) \1$", text("Containerfile"), re.MULTILINE))
    assert copied == {"features", "embeddings", "ranking", "serving", "experiments"}
    makefile = (FOLDER.parents[1] / "Makefile").read_text(encoding="utf-8")
    for pin in ("torch==2.13.0", "torchrec==1.8.0"):
        assert pin in makefile
        assert pin in text("Containerfile")


def test_every_metric_of_dashboard_and_alerts_is_one_that_the_servers_count() -> None:
    named = {name for expression in expressions() for name in _METRIC.findall(expression)}
    ts_metrics = yaml.safe_load(metrics_text())["ts_metrics"]
    of_torchserve = {one["name"] for kind in ts_metrics.values() for one in kind}
    assert named - ours() - of_torchserve == set()
    shown = {name for name in ours() if not name.endswith(("_count", "_sum"))}
    assert shown - named == set(), "nobody looks at these"


def test_every_label_of_dashboard_and_alerts_is_one_that_the_servers_give() -> None:
    known = {"le"} | {label for sample in Measures().samples() for label in sample.labels}
    for expression in expressions():
        for grouped, compared in _LABEL.findall(expression):
            names = {name.strip() for name in grouped.split(",")} if grouped else {compared}
            assert names <= known, expression


def test_panels_do_not_overlap_and_alerts_have_a_severity() -> None:
    dashboard = json.loads(text("grafana_dashboard.json"))
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])
    (group,) = yaml.safe_load(text("prometheus_alerts.yaml"))["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_fastapi_shows_every_metric_of_dashboard_and_alerts() -> None:
    from serving.servers.fastapi.app import create_app
    from tests.serving.servers.fastapi.test_app import root_of, served
    from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer

    with served(create_app(stand_in_scorer())) as server:
        page = urllib.request.urlopen(root_of(server) + "/metrics", timeout=60).read().decode()
    named = {name for expression in expressions() for name in _METRIC.findall(expression)}
    assert {name for name in named if not name.startswith("ts_")} - names_on(page) == set()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs java")
def test_torchserve_shows_every_metric_of_dashboard_and_alerts(running_page: str) -> None:
    named = {name for expression in expressions() for name in _METRIC.findall(expression)}
    assert named - names_on(running_page) == set()


@pytest.fixture
def running_page(tmp_path: Path) -> Iterator[str]:
    """/metrics of a TorchServe around the stand-in that has answered a request."""
    from serving.servers.torchserve.archive import build_archive
    from serving.servers.torchserve.server import start, stop
    from tests.serving.servers.torchserve import stand_in_handler
    from tests.serving.servers.torchserve.test_server import free_ports

    archive = build_archive(
        tmp_path,
        tmp_path,
        version="1.0",
        example=b'{"user_id": 1, "query": "q", "candidates": [101]}',
        handler=Path(stand_in_handler.__file__),
    )
    server = start(archive, ServerSettings(port=free_ports()))
    try:
        yield urllib.request.urlopen(server.metrics_url, timeout=60).read().decode()
    finally:
        stop(tmp_path)


def names_on(page: str) -> set[str]:
    """Of samples, and of families that have none yet."""
    return set(re.findall(r"^(?:# TYPE )?(\w+)", page, re.MULTILINE))
