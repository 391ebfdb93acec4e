"""What every server serves by: the scorer of one package or several, and an endpoint with its observers."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from serving.drift.live_counts import LiveCounts
from serving.feature_log.feature_log import FeatureLog, FeatureLogSettings
from serving.observers.observer import Observer
from serving.observers.shadow import ShadowScoring
from serving.scoring.predictor import Predictor, load_to_serve
from serving.scoring.routed_scorer import ROUTING, RoutedScorer
from serving.servers.endpoint import Endpoint
from serving.servers.healing import HealingScorer
from serving.servers.measures import Measures
from serving.servers.trace_settings import TraceSettings, open_traces
from serving.wire.reply import Scorer


def open_scorer(
    package: Path,
    challengers: Mapping[str, Path],
    *,
    state: Path | None,
    heals: bool = True,
    trusted_key: Path | None = None,
) -> Scorer:
    """The predictor of a package, or several behind one scorer: what both servers open.

    Args:
        state: folder with the routing of challengers.
        heals: serve an older generation where the current one cannot be opened, and the champion alone where
            a challenger cannot; then it is tried again from time to time.
        trusted_key: public key that has to have signed all of them.

    Raises:
        PackageError: a package is damaged; without `heals`, that of a challenger, too.
        ValueError: a challenger's name cannot be one.
    """
    champion = _open(package, heals=heals, trusted_key=trusted_key)
    return with_challengers(champion, challengers, state=state, heals=heals, trusted_key=trusted_key)


def with_challengers(
    champion: Scorer,
    challengers: Mapping[str, Path],
    *,
    state: Path | None,
    heals: bool,
    trusted_key: Path | None = None,
) -> Scorer:
    """A champion that is open, and what challenges it; see `open_scorer`."""
    if not challengers:
        return champion
    others = {}
    for name, path in challengers.items():
        others[name] = HealingScorer(partial(_open, path, heals=heals, trusted_key=trusted_key))
        others[name].open(raises=not heals)
    return RoutedScorer(champion, others, routing_file=None if state is None else state / ROUTING)


def _open(package: Path, *, heals: bool, trusted_key: Path | None) -> Predictor:
    return load_to_serve(package, trusted_key) if heals else Predictor.load(package)


def build_endpoint(
    scorer: Scorer,
    *,
    live: LiveCounts | None = None,
    log: FeatureLogSettings | None = None,
    traces: TraceSettings | None = None,
) -> Endpoint:
    """An endpoint that shadows where the routing says so, and logs features where `log` says so.

    Raises:
        ValueError: the feature log has no key, or what sends traces is not installed.
    """
    measures = Measures()
    observers: tuple[Observer, ...] = (FeatureLog(log, measures),) if log else ()
    shadows = ShadowScoring(measures, observers=observers)
    # Closed in this order: what shadows still score goes into the log.
    return Endpoint(
        scorer,
        live=live,
        measures=measures,
        observers=(shadows, *observers),
        traces=open_traces(traces) if traces else None,
    )
