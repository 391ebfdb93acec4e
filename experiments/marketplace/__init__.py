"""A simulated search-ads marketplace whose true click probabilities are known."""
