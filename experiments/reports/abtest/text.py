"""Numbers of an online experiment as words of its page."""

from experiments.statistics.cells import NONE

#: Below it a difference counts as found, after control of false discoveries.
LEVEL = 0.05


def value_text(value: float) -> str:
    """A mean of a metric, of whatever size."""
    return f"{value:.4g}"


def p_text(value: float | None) -> str:
    """A p-value; tiny ones are not told apart."""
    return NONE if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def percent_text(value: float | None) -> str:
    """As "+3.7 %"."""
    return NONE if value is None else f"{100 * value:+.1f} %"


def slope_text(value: float) -> str:
    """As "-0.12 %"."""
    return f"{100 * value:+.2f} %"


def limits_text(low: float | None, high: float | None) -> str:
    """As "+1.2 … +6.3", in percent."""
    return NONE if low is None or high is None else f"{100 * low:+.1f} … {100 * high:+.1f}"
