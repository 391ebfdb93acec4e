"""Scores for what people bring: pairs of texts, a query, impressions that no log has yet."""
