"""Ways to make an embedding table: encoders, LSA, published models, a user's own vectors."""
