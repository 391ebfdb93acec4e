"""Speed and memory of feature building and loading, against pandas."""
