"""Tests of feature importance."""
