"""An endpoint with its observers: the same in every server."""

from serving.feature_log.feature_log import FeatureLog, FeatureLogSettings
from serving.observers.observer import Observer
from serving.observers.shadow import ShadowScoring
from serving.servers.drift import LiveCounts
from serving.servers.endpoint import Endpoint
from serving.servers.measures import Measures
from serving.wire.reply import Scorer


def build_endpoint(
    scorer: Scorer, *, live: LiveCounts | None = None, log: FeatureLogSettings | None = None
) -> Endpoint:
    """An endpoint that shadows where the routing says so, and logs features where `log` says so.

    Raises:
        ValueError: the feature log has no key.
    """
    measures = Measures()
    observers: tuple[Observer, ...] = (FeatureLog(log, measures),) if log else ()
    shadows = ShadowScoring(measures, observers=observers)
    # Closed in this order: what shadows still score goes into the log.
    return Endpoint(scorer, live=live, measures=measures, observers=(shadows, *observers))
