"""The metrics of an online experiment: each a sum over a sum, or a sum for each unit.

A unit is what the variants were drawn for, a user as a rule. The metrics of impressions are ratios of two
sums that vary together from unit to unit, so their variance is that of units, never of impressions.
"""

from dataclasses import dataclass

#: Columns that are counted for each unit and day; each may have a sum from before it as `pre_<name>`.
COUNTED = ("searches", "impressions", "clicks", "conversions", "revenue", "relevance", "errors")
#: Without these there is no experiment to speak of.
REQUIRED = ("impressions", "clicks")
BEFORE = "pre_"


@dataclass(frozen=True)
class Metric:
    """Sum of `numerator` over the sum of `denominator`; over the number of units where that is None."""

    name: str
    title: str
    numerator: str
    denominator: str | None
    meaning: str

    @property
    def columns(self) -> tuple[str, ...]:
        """What it is made of."""
        return (self.numerator,) if self.denominator is None else (self.numerator, self.denominator)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ctr", "CTR", "clicks", "impressions", "clicks / impressions"),
        Metric("conversions", "Conversions a user", "conversions", None, "orders / users"),
        Metric("conversion_rate", "Conversion rate", "conversions", "clicks", "orders / clicks"),
        Metric("revenue", "Revenue a user", "revenue", None, "ad revenue / users"),
        Metric(
            "revenue_per_impression",
            "Revenue an impression",
            "revenue",
            "impressions",
            "ad revenue / impressions",
        ),
        Metric(
            "relevance", "Relevance", "relevance", "impressions", "mean grade of what was shown, from 0 to 2"
        ),
    )
}
#: The share of searches that failed: a guardrail, not a metric to win with.
ERROR_SHARE = Metric("error_share", "Error share", "errors", "searches", "failed searches / searches")
#: What the lifts of slices are of.
SLICE_METRICS = ("ctr", "conversions", "revenue")
