"""TorchServe's gRPC with our bodies: the same scores as over HTTP, and what becomes of refusals."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from features.online.request import ScoreRequest
from serving.servers.torchserve.archive import build_archive
from serving.servers.torchserve.files import ServerSettings
from serving.servers.torchserve.server import RunningServer, start, stop
from serving.wire import arrow_codec, json_codec
from tests.serving.servers.torchserve import stand_in_handler
from tests.serving.servers.torchserve.test_server import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs java"),
]
PACKAGE = "org.pytorch.serve.grpc.inference"
REQUEST = ScoreRequest(user_id=1, query="q", candidates=[101, 7])


def messages() -> tuple[Any, Any]:
    """Request and response as TorchServe's `inference.proto` has them, without generated stubs."""
    text, message, content = 9, 11, 12
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package=PACKAGE, syntax="proto3")
    request = file.message_type.add(name="PredictionsRequest")
    request.field.add(name="model_name", number=1, type=text, label=1)
    entries = f".{PACKAGE}.PredictionsRequest.InputEntry"
    request.field.add(name="input", number=3, type=message, label=3, type_name=entries)
    entry = request.nested_type.add(name="InputEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=text, label=1)
    entry.field.add(name="value", number=2, type=content, label=1)
    response = file.message_type.add(name="PredictionResponse")
    response.field.add(name="prediction", number=1, type=content, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [pool.FindMessageTypeByName(f"{PACKAGE}.{one.name}") for one in (request, response)]
    return message_factory.GetMessageClass(found[0]), message_factory.GetMessageClass(found[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Any]]:
    folder = tmp_path_factory.mktemp("grpc")
    example = json_codec.encode_request(REQUEST)
    handler = Path(stand_in_handler.__file__)
    archive = build_archive(folder, folder, version="1.0", example=example, handler=handler)
    settings = ServerSettings(port=free_ports())
    running = start(archive, settings)
    request, response = messages()
    with grpc.insecure_channel(f"127.0.0.1:{settings.ports['grpc_inference']}") as channel:
        call = channel.unary_unary(
            f"/{PACKAGE}.InferenceAPIsService/Predictions",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

        def ask(body: bytes, *, token: bool = True) -> bytes:
            assert running.key_file is not None
            key = json.loads(running.key_file.read_text())["inference"]["key"]
            metadata = (("protocol", "gRPC"), ("authorization", f"Bearer {key}")) if token else ()
            asked = request(model_name="dashclip", input={"body": body})
            return bytes(call(asked, metadata=metadata, timeout=60).prediction)

        yield running, ask
    stop(folder)


def test_an_arrow_and_a_json_body_are_scored_as_over_http(server: tuple[RunningServer, Any]) -> None:
    running, ask = server
    with running.client(timeout_s=60) as client:
        scores_N = client.score(REQUEST).scores_N
    for codec in (arrow_codec, json_codec):
        reply = codec.decode_reply(ask(codec.encode_request(REQUEST)))
        assert (reply.scores_N == scores_N).all()


def test_a_refusal_is_a_prediction_that_is_json_and_has_an_error(server: tuple[RunningServer, Any]) -> None:
    _, ask = server
    assert json.loads(ask(b'{"query": "q", "candidates": []}'))["error"]["field"] == "candidates"


def test_a_call_without_a_token_is_denied(server: tuple[RunningServer, Any]) -> None:
    _, ask = server
    with pytest.raises(grpc.RpcError) as error:
        ask(b"{}", token=False)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
