"""What tells one training run from another: checksums of settings, weights and input tables."""

import hashlib
import json
from pathlib import Path
from typing import Any

from embeddings.encoders.dashclip import DashClipEncoder
from features.artifacts import sha256_of
from features.inputs.table_folders import partition_of
from features.inputs.tables import table_files


def settings_fingerprint(settings: dict[str, Any]) -> str:
    """Checksum of settings that JSON can say."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def weights_fingerprint(encoder: DashClipEncoder) -> str:
    """The id of a saved encoder, or a checksum of one that was never saved."""
    if encoder.encoder_id != "unsaved":
        return encoder.encoder_id
    digest = hashlib.sha256(encoder.config.model_dump_json().encode())
    digest.update("\0".join(encoder.tokenizer.tokens).encode())
    for module in (encoder.product, encoder.query):
        for name, value in sorted(module.state_dict().items() if module is not None else ()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return f"unsaved-{digest.hexdigest()[:16]}"


def table_fingerprint(data: Path, name: str) -> str:
    """Checksum of one input table: its files, and what Hive partitions add; "absent" without it."""
    parts = table_files(data, name)
    if not parts:
        return "absent"
    digest = hashlib.sha256()
    for part in parts:
        partition = partition_of(part, data / name) if part.parent != data else {}
        digest.update((sha256_of(part) + (repr(partition) if partition else "")).encode())
    return digest.hexdigest()
