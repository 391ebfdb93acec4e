"""The catalogue as encoders see it: products, titles, images, tokens and what is held out."""
