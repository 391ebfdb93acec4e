"""A trained run as the policy of a world of its own: packaged, refreshed at midnight, asked.

Shapes: S searches, K candidates of a search.
"""

from pathlib import Path

from experiments.abtest.loop.served_days import AloneInTheWorld, scores_of
from experiments.abtest.simulated.policies import PackagePolicy
from experiments.abtest.simulated.requests import request
from experiments.abtest.simulated.run import searches_with_candidates
from experiments.marketplace.generate import midnight_us
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.world.catalog import FloatArray
from experiments.runtime.run_layout import package_run
from features.artifacts import remove_folder
from features.columns.clock import iso
from features.progress import Progress, silent
from serving.package.generations import current_generation
from serving.package.sealed_folder import PackageError
from serving.packaging.build_package import PackageOptions

#: Compiled in a second; latency is not measured here.
_PACKAGE = PackageOptions(backend="torchscript", parity_requests=16)


def packaged(run: Path, folder: Path, alone: AloneInTheWorld) -> PackagePolicy:
    """The policy of a run as of the next midnight of its world, in `folder`/package and `folder`/working.

    A working copy that an earlier start left is thrown away: its snapshot may be of a later day.
    """
    package, working = folder / "package", folder / "working"
    if not _is_package(package):
        as_of = iso(midnight_us(alone.market.world.config, alone.next_day))
        package_run(run, package, data=alone.log, as_of=as_of, options=_PACKAGE)
    if working.exists():
        remove_folder(working)
    return PackagePolicy(package, working)


def fresh_scores(
    policy: PackagePolicy, alone: AloneInTheWorld, demand: Demand, progress: Progress = silent
) -> FloatArray:
    """Scores [S, K] of a day, with the snapshot of the midnight before it."""
    world = alone.market.world
    probe = int(searches_with_candidates(demand)[0])
    policy.refresh(alone.log, demand.start_us, probe=request(world, demand, probe, None, window_days=0))
    return scores_of(policy, world, demand, progress)


def _is_package(folder: Path) -> bool:
    try:
        current_generation(folder)
    except PackageError:
        return False
    return True
