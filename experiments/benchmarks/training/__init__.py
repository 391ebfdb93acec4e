"""Speed of ranker training, against other CTR libraries and the machine's limit."""
