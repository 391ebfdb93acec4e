"""Graders that are language models: what they are asked, and the three ways to ask."""
