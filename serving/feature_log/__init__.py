"""The feature log: what was served, with the features that the model read, and later clicks joined to it."""
