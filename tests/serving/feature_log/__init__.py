"""Tests of the feature log."""
