"""How a long function tells where it is."""

from collections.abc import Callable

#: Called with the name of a stage, how much of it is done, and out of how much.
Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
