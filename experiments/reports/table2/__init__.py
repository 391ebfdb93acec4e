"""Table 2 as text, plots and page."""
