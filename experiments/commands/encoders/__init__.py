"""Commands that train encoders and make embedding tables."""
