"""One module for each group of `dashclip` subcommands."""
