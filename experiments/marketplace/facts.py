"""What the simulated log is like, counted while it is written, so that no table is read back.

Shapes: N rows of one day, U users, P products.
"""

from collections import deque
from typing import Any

import numpy as np

from experiments.marketplace.config import LogConfig
from experiments.marketplace.days.purchases import PurchaseRows
from experiments.marketplace.days.searches import ImpressionRows
from experiments.marketplace.days.slates import SLOTS
from experiments.marketplace.logit_variance import LogitVariance
from experiments.marketplace.world.catalog import BoolArray, FloatArray, IntArray


class LogFacts:
    """Counts over all days; keeps single impressions of the test days only.

    "History" is what features see: purchases of the `history_days` days before the impression's day.

    Args:
        kind_Q: kind of each query; None where queries have none.
    """

    def __init__(
        self, config: LogConfig, *, num_products: int, num_queries: int, kind_Q: IntArray | None
    ) -> None:
        self._config, self._kind_Q = config, kind_Q
        self.impressions = self.clicks = self.purchases = self.searches = 0
        self._shown_Q = np.zeros(num_queries, np.int64)
        self._shown_P = np.zeros(num_products, np.int64)
        self._shown_U = np.zeros(config.users, bool)
        self._purchased_U = np.zeros(config.users, bool)
        self._history_U = np.zeros(config.users, np.int32)
        self._window: deque[IntArray] = deque()
        self._grades = np.zeros(3, np.int64)
        self._kinds = np.zeros(5, np.int64)
        self._positions = np.zeros((2, SLOTS), np.int64)
        self._logit_variance = LogitVariance()
        self._history_sum = self._history_empty = 0
        self._test: list[tuple[BoolArray, FloatArray]] = []
        self._test_unseen_product = self._test_unseen_query = self._test_no_history = 0

    def add_impressions(self, rows: ImpressionRows, searches: int, day: int) -> None:
        """Count one day's impressions; call before that day's purchases."""
        testing = day >= self._config.days - self._config.test_days
        history_N = self._history_U[rows.user_N]
        if testing:
            self._test.append((rows.clicked_N, rows.probability_N))
            self._test_unseen_product += int((self._shown_P[rows.product_N] == 0).sum())
            self._test_unseen_query += int((self._shown_Q[rows.query_N] == 0).sum())
            self._test_no_history += int((history_N == 0).sum())
        else:  # "unseen" means not seen before the test days
            self._shown_Q += np.bincount(rows.query_N, minlength=len(self._shown_Q))
            self._shown_P += np.bincount(rows.product_N, minlength=len(self._shown_P))
        self.impressions += len(rows.user_N)
        self.searches += searches
        self.clicks += int(rows.clicked_N.sum())
        self._shown_U[rows.user_N] = True
        self._grades += np.bincount(rows.grade_N, minlength=3)
        if self._kind_Q is not None:
            self._kinds += np.bincount(self._kind_Q[rows.query_N], minlength=5)
        self._positions[0] += np.bincount(rows.position_N - 1, minlength=SLOTS)
        self._positions[1] += np.bincount(rows.position_N[rows.clicked_N] - 1, minlength=SLOTS)
        self._logit_variance.add(rows.terms, rows.position_N)
        self._history_sum += int(history_N.sum())
        self._history_empty += int((history_N == 0).sum())

    def add_purchases(self, rows: PurchaseRows) -> None:
        """Count one day's purchases, also of the days before the first impression."""
        self.purchases += len(rows.user_N)
        self._purchased_U[rows.user_N] = True
        np.add.at(self._history_U, rows.user_N, 1)
        self._window.append(rows.user_N)
        if len(self._window) > self._config.history_days:
            np.subtract.at(self._history_U, self._window.popleft(), 1)

    def summary(self) -> dict[str, Any]:
        """Everything as JSON; the best AUC is that of the true probabilities on the test days."""
        from sklearn.metrics import log_loss, roc_auc_score

        clicked_N = np.concatenate([clicked for clicked, _ in self._test])
        probability_N = np.concatenate([probability for _, probability in self._test])
        ctr = float(clicked_N.mean())
        loss = float(log_loss(clicked_N, probability_N, labels=[0, 1]))
        entropy = -(ctr * np.log(ctr) + (1 - ctr) * np.log(1 - ctr)) if 0 < ctr < 1 else float("nan")
        both = 0 < ctr < 1
        total = max(self.impressions, 1)
        kinds = {"query_kind_shares_of_impressions": (self._kinds / total).round(5).tolist()}
        return {
            "impressions": self.impressions,
            "searches": self.searches,
            "purchases": self.purchases,
            "ctr": self.clicks / total,
            "ctr_by_position": [
                round(float(c / max(n, 1)), 5)
                for n, c in zip(self._positions[0], self._positions[1], strict=True)
            ],
            "grade_shares_of_impressions": (self._grades / total).round(5).tolist(),
            **({} if self._kind_Q is None else kinds),
            "logit_variance": self._logit_variance.summary(),
            "users_without_purchases": float(1 - self._purchased_U.mean()),
            "shown_users_without_purchases": float(1 - self._purchased_U[self._shown_U].mean()),
            "impressions_without_history": self._history_empty / total,
            "mean_history_length": self._history_sum / total,
            "test": {
                "impressions": len(clicked_N),
                "ctr": ctr,
                "best_auc": float(roc_auc_score(clicked_N, probability_N)) if both else None,
                "best_logloss": loss,
                "best_norm_logloss": loss / float(entropy) if both else None,
                "unseen_product_share": self._test_unseen_product / len(clicked_N),
                "unseen_query_share": self._test_unseen_query / len(clicked_N),
                "without_history": self._test_no_history / len(clicked_N),
            },
        }
