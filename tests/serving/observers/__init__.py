"""Tests of what looks at answers."""
