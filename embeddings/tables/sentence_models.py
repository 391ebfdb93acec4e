"""Tables of any model that the library sentence-transformers opens: bring your own encoder of texts.

The library is an extra (`pip install 'dashclip-ranker[sentence-transformers]'`). It pools, projects and puts
prompts before queries and documents as the model's files say. `dashclip encode from-bert` is for models that
are to be trained further, or served; this is for vectors as they are, of models of any kind.

Shapes: N products, Q queries, D embedding width.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.catalog.inputs import read_distinct_queries, read_product_texts
from embeddings.embedding_table import MAX_DIM, EmbeddingTable
from embeddings.encoders.pretrained import PretrainedError, first_line
from embeddings.tables.lsa import holds_only_lsa_tables, write_both_tables
from features.artifacts import refuse_foreign_folder, refuse_to_replace_input
from features.progress import Progress, silent

#: Texts encoded between two reports of progress.
CHUNK_TEXTS = 1024


def embed_sentence_model(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    columns: Sequence[str] = ("title",),
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[EmbeddingTable, EmbeddingTable | None]:
    """Embed the products and distinct queries of a data folder into `out`/products and `out`/queries.

    Queries go through the model's `encode_query`, titles through its `encode_document`. Vectors are divided
    by their norms; a blank text has zeros.

    Args:
        model: a folder, or a name that the hub knows.

    Raises:
        PretrainedError: the library is not installed, cannot open the model, or its vectors fit no table.
        InputError: there are no products, or they lack a column.
        FileExistsError: `out` holds something else.
        ValueError: `out` would replace `data`.
    """
    refuse_to_replace_input(out, data)
    refuse_foreign_folder(out, ours=holds_only_lsa_tables)
    opened = open_sentence_model(model, device=device)
    product_ids, texts = read_product_texts(data, columns)
    queries = read_distinct_queries(data)
    products_ND = _unit_vectors(opened.encode_document, texts, batch_size, "products", progress)
    queries_QD = _unit_vectors(opened.encode_query, queries.to_pylist(), batch_size, "queries", progress)
    dim = products_ND.shape[1]
    if dim % 4 or dim > MAX_DIM:
        raise PretrainedError(f"{model} gives vectors of {dim}; a table takes multiples of 4 up to {MAX_DIM}")
    encoder_id = f"sentence-transformers-{_digest(opened)}-{'+'.join(columns)}"
    return write_both_tables(out, (product_ids, products_ND), (queries, queries_QD), encoder_id=encoder_id)


def open_sentence_model(model: str | Path, *, device: str = "cpu") -> Any:
    """The SentenceTransformer of a folder or of a name on the hub.

    Raises:
        PretrainedError: the library is not installed, or cannot open it.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise PretrainedError(
            "sentence-transformers is not installed; the extra `sentence-transformers` adds it, or use "
            "`dashclip encode from-bert`, which needs no further package"
        ) from None
    try:
        return SentenceTransformer(str(model), device=device)
    except Exception as error:  # whatever the library finds wrong with a folder
        raise PretrainedError(f"{model} cannot be opened as a sentence model: {first_line(error)}") from error


def _unit_vectors(
    encode: Any, texts: Sequence[str | None], batch_size: int, stage: str, progress: Progress
) -> npt.NDArray[np.float32]:
    """Unit vectors [N, D] of the texts; texts of like length share a batch."""
    known = sorted(
        (row for row, text in enumerate(texts) if text and text.strip()),
        key=lambda row: len(texts[row] or ""),
    )
    vectors_ND: npt.NDArray[np.float32] | None = None
    for start in range(0, max(1, len(known)), CHUNK_TEXTS):
        progress(stage, start, len(known))
        rows = known[start : start + CHUNK_TEXTS]
        # Without any text one is encoded all the same, to know the width.
        found_BD = np.asarray(
            encode(
                [texts[row] for row in rows] or ["a"],
                batch_size=batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            ),
            np.float32,
        )
        if vectors_ND is None:
            vectors_ND = np.zeros((len(texts), found_BD.shape[1]), np.float32)
        vectors_ND[rows] = found_BD[: len(rows)]
    progress(stage, len(known), len(known))
    assert vectors_ND is not None
    return vectors_ND


def _digest(model: Any) -> str:
    """12 hexadecimal digits of the SHA-256 of all weights: a folder's name says nothing of what is in it."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
