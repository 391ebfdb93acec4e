"""The experiment that days make: the tables that `dashclip abtest report` reads, and the true lift.

`OUT/experiment` is a folder as `experiments.abtest.experiment_log` describes it, written anew after each day.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from experiments.abtest.description import Description
from experiments.abtest.experiment_log import write_experiment
from experiments.abtest.metrics import METRICS
from experiments.abtest.simulated.before import Before
from experiments.abtest.simulated.day_files import COUNTS, EXPECTATION, EXPECTED
from experiments.abtest.simulated.settings import CONTROL, POLICIES, TREATMENT, RunSettings


def write_result(
    folder: Path, settings: RunSettings, before: Before, days: Sequence[Path]
) -> dict[str, float]:
    """Write the experiment of these days; returns the true lifts."""
    twins = pa.concat_tables(pq.read_table(day / "twins.parquet") for day in days)
    latency = pa.concat_tables(pq.read_table(day / "latency.parquet") for day in days)
    truth = true_lifts(twin_totals(twins))
    write_experiment(
        folder,
        Description(
            simulated=True,
            control=CONTROL,
            treatment=TREATMENT,
            shares=settings.shares,
            salt=settings.salt,
            planned_days=settings.days,
            true_lift=truth,
        ),
        unit_days(twins, before),
        slices=pa.concat_tables(pq.read_table(day / "slices.parquet") for day in days),
        latency=latency if len(latency) else None,  # packages are not timed
    )
    return truth


def unit_days(twins: pa.Table, before: Before) -> pa.Table:
    """What served twins did, with what was known of them before."""
    treated = pc.equal(twins["variant"], TREATMENT)
    served = twins.filter(pc.equal(pc.equal(twins["policy"], TREATMENT), treated))
    chosen = served.select(["unit", "variant", "day", *COUNTS])
    place = pc.index_in(chosen["unit"], before.units["unit"].combine_chunks())
    known = before.units.drop_columns(["unit"]).take(place)
    for name in known.column_names:
        chosen = chosen.append_column(name, known[name])
    return chosen.sort_by([("day", "ascending"), ("unit", "ascending")])


def twin_totals(twins: pa.Table) -> dict[str, dict[str, float]]:
    """Sums of all columns of counts by policy; `units` is how many consumers there are."""
    totals = {}
    for policy in POLICIES:
        rows = twins.filter(pc.equal(twins["policy"], policy))
        names = [*COUNTS, *(EXPECTATION + name for name in EXPECTED)]
        totals[policy] = {name: float(np.sum(rows[name].to_numpy())) for name in names}
        totals[policy]["units"] = float(len(pc.unique(rows["unit"])))
    return totals


def true_lifts(totals: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Relative lift of each metric: every consumer with the treatment over every consumer with the control.

    Of clicks, conversions and revenue it takes what was to be expected. A metric that is 0 with the control
    has no lift.

    Args:
        totals: as `twin_totals` makes them.
    """
    values = {policy: _true_values(sums) for policy, sums in totals.items()}
    return {
        name: values[TREATMENT][name] / value - 1
        for name, value in values[CONTROL].items()
        if value > 0 and name in values[TREATMENT]
    }


def _true_values(sums: Mapping[str, float]) -> dict[str, float]:
    def total(count: str) -> float:
        return sums[EXPECTATION + count if count in EXPECTED else count]

    found = {}
    for name, metric in METRICS.items():
        below = sums["units"] if metric.denominator is None else total(metric.denominator)
        if below > 0:
            found[name] = total(metric.numerator) / below
    return found
