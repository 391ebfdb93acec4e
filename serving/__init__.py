"""From request to score: the fused model behind a server."""
