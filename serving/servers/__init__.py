"""From bodies to answers, and what every server counts, tells and heals."""
