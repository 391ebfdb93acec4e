"""Semantic embeddings of products and queries, and the EmbeddingTable artifact that carries them."""
