"""The importance report: page, text, plots."""
