"""A TorchServe handler that does nothing: what a request costs before any model. `build_archive(handler=…)`.

It answers every body with the same reply, of as many scores as `noop_candidates` of its settings says.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.wire.json_codec import CONTENT_TYPE, encode_reply
from serving.wire.reply import ScoreReply, best_first


class NoopHandler:
    """Lives in each worker process."""

    def __init__(self) -> None:
        self._answer = b""

    def initialize(self, context: Any) -> None:
        """Make the reply."""
        count = int(context.model_yaml_config["dashclip"]["noop_candidates"])
        scores_N = np.linspace(0, 1, count, dtype=np.float32)
        self._answer = encode_reply(ScoreReply(scores_N, best_first(scores_N), "noop", "000000", "", {}))

    def handle(self, requests: Sequence[Any], context: Any) -> list[bytes]:
        """The same for everybody."""
        for position in range(len(requests)):
            context.set_response_status(200, "OK", position)
            context.set_response_content_type(position, CONTENT_TYPE)
        return [self._answer] * len(requests)
