"""Pages and published tables made of measured files."""
