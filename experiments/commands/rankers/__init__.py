"""Commands that train rankers and compare them."""
