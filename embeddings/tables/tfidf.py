"""Character n-gram TF-IDF as embedding tables: the lexical score that needs no training, for rankers.

Their inner product is nearly the cosine of `embeddings.evaluation.lexical.char_tfidf_scores`, whose terms and
weights these are. Truncated SVD learned on titles and queries brings the sparse vectors to D dimensions. On a
simulated marketplace (5,000 products, 8,000 queries, 3,874 n-grams; 40,000 logged pairs, whose exact cosines
have a standard deviation of .282) the cosines miss the exact ones by, root mean square:

    D                                       128    256    512    1024
    SVD learned on titles and queries      .183   .091   .030    .006
    SVD learned on titles                  .167   .092   .036    .020
    sparse random projection               .083   .058   .041    .030

A random projection does not depend on the texts: where a catalogue is much more varied, and D small, it would
be nearer. LSA (`embeddings.tables.lsa`) is another thing: it adds words, and cuts to few dimensions on
purpose.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from embeddings.catalog.terms import character_tfidf
from embeddings.embedding_table import EmbeddingTableError
from embeddings.tables.lsa import LsaTables, LsaVectors, check_dim, embed_texts, fit_sample, reduced
from features.progress import Progress, silent


def embed_tfidf(
    data: Path,
    folder: Path,
    *,
    dim: int = 512,
    seed: int = 0,
    columns: Sequence[str] = ("title",),
    progress: Progress = silent,
) -> LsaTables:
    """Write `folder`/products and `folder`/queries, as `embeddings.tables.lsa.embed_lsa` does.

    Raises:
        as `embeddings.tables.lsa.embed_texts`.
    """
    return embed_texts(
        data, folder, tfidf_vectors, name="char-tfidf", dim=dim, seed=seed, columns=columns, progress=progress
    )


def tfidf_vectors(
    titles: Sequence[str | None],
    queries: Sequence[str | None],
    *,
    dim: int,
    seed: int,
    progress: Progress = silent,
) -> LsaVectors:
    """Unit vectors of titles and queries, D = `dim`; zeros for texts without a known n-gram.

    Document frequencies are those of titles. With at least as many dimensions as texts the cosines are exact.

    Raises:
        EmbeddingTableError: `dim` is not a multiple of 4 up to 1024, or no title holds a letter or digit.

    >>> found = tfidf_vectors(["Shampoo", "Soap"], ["shampo"], dim=4, seed=0)
    >>> (found.products_ND @ found.queries_QD[0]).argmax()
    np.int64(0)
    """
    check_dim(dim)
    progress("terms", 0, 1)
    terms = character_tfidf(fit_sample(titles, (), np.random.default_rng(seed)))
    if terms is None:
        raise EmbeddingTableError("no character n-gram is in two titles: there is nothing to compare by")

    def tfidf(texts: Sequence[str]) -> sp.csr_matrix:
        return terms.transform(texts)

    sample = fit_sample(titles, queries, np.random.default_rng(seed))
    return reduced(titles, queries, sample, tfidf, dim=dim, seed=seed, progress=progress)
