"""Relevance grades and the training tuples made of them."""
