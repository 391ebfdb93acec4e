"""Users of the simulated marketplace: what they like, how active they are, what they bought lately.

Shapes: U users, P products, N rows, K likes of one sort, R remembered purchases.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.config import LogConfig, TasteModel
from experiments.marketplace.world.assortment import FLAGS
from experiments.marketplace.world.catalog import FloatArray, IntArray, Shelf
from experiments.marketplace.world.pools import ProductPools

DEVICES = ("ios", "android", "web")
_DEVICE_SHARES = (0.45, 0.35, 0.20)
#: Chance of each of a user's liked types, first to last, when the user shops by habit.
LIKED_TYPE_SHARES = (0.30, 0.22, 0.16, 0.13, 0.10, 0.09)
#: Share of flags that a diet can consist of, most frequent first (bits of `assortment.FLAGS`).
_DIET_ZIPF = 0.6
#: Chance of no, one and two diet flags.
_DIET_SIZES = (0.35, 0.40, 0.25)
_USERS_PER_CHUNK = 100_000
_REMEMBERED = 16


@dataclass(frozen=True)
class Shoppers:
    """All users. `liked_type_UK`, `liked_variety_UK`, `liked_brand_UK` hold indices; -1 is no like."""

    searches_U: FloatArray
    orders_U: FloatArray
    #: First day with orders; users without purchases never order and never convert.
    first_order_day_U: IntArray
    liked_type_UK: IntArray
    liked_variety_UK: IntArray
    disliked_variety_UK: IntArray
    liked_brand_UK: IntArray
    diet_U: IntArray
    price_sensitivity_U: FloatArray
    click_tendency_U: FloatArray
    device_U: IntArray
    store_U: IntArray

    @property
    def num_users(self) -> int:
        return len(self.diet_U)


def make_shoppers(config: LogConfig, catalog: Shelf, seed: np.random.SeedSequence) -> Shoppers:
    """Draw all users, 100,000 at a time. Likes follow from the liked types, so that they matter there."""
    fashion_seed, users_seed = seed.spawn(2)
    num_types = catalog.num_types
    type_popularity_T: FloatArray = np.bincount(
        catalog.type_P, weights=catalog.popularity_P, minlength=num_types
    ) * np.random.default_rng(fashion_seed).lognormal(0.0, 0.5, num_types)
    # To copy a variety or brand from: any product of the type, whether it is there yet or not.
    carriers = ProductPools(
        catalog.type_P,
        np.arange(catalog.num_products),
        num_lists=num_types,
        available_from_P=np.zeros(catalog.num_products, np.int32),
        weight_P=catalog.popularity_P,
    )
    carriers.open_day(0)
    chunks = []
    firsts = range(0, config.users, _USERS_PER_CHUNK)
    for first, chunk_seed in zip(firsts, users_seed.spawn(len(firsts)), strict=True):
        count = min(_USERS_PER_CHUNK, config.users - first)
        rng = np.random.default_rng(chunk_seed)
        chunks.append(_draw_users(config, catalog, type_popularity_T, carriers, count, rng))
    return Shoppers(**{name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def taste_affinity(
    taste: TasteModel, shoppers: Shoppers, catalog: Shelf, user_N: IntArray, product_N: IntArray
) -> FloatArray:
    """How much each user likes each product, in log-odds; 0 for a user who likes and dislikes nothing."""
    variety_N1 = catalog.variety_P[product_N][:, None]
    liked_type_N = (shoppers.liked_type_UK[user_N] == catalog.type_P[product_N][:, None]).any(axis=1)
    liked_variety_N = (shoppers.liked_variety_UK[user_N] == variety_N1).any(axis=1)
    disliked_variety_N = (shoppers.disliked_variety_UK[user_N] == variety_N1).any(axis=1)
    liked_brand_N = (shoppers.liked_brand_UK[user_N] == catalog.brand_P[product_N][:, None]).any(axis=1)
    diet_N = shoppers.diet_U[user_N]
    diet_met_N = (catalog.flags_P[product_N] & diet_N) != 0
    return (
        taste.liked_type * liked_type_N
        + taste.liked_variety * liked_variety_N
        + taste.disliked_variety * (disliked_variety_N & ~liked_variety_N)
        + taste.liked_brand * liked_brand_N
        + taste.diet_met * diet_met_N
        + taste.diet_missed * (~diet_met_N & (diet_N != 0))
    )


class PurchaseMemory:
    """The last `_REMEMBERED` purchases of every user, for repeat orders and the repeat effect on clicks."""

    def __init__(self, num_users: int) -> None:
        self._product_UR = np.full((num_users, _REMEMBERED), -1, np.int32)
        self._day_UR = np.zeros((num_users, _REMEMBERED), np.int16)
        self._count_U = np.zeros(num_users, np.int64)

    def add(self, user_N: IntArray, product_N: IntArray, day: int) -> None:
        """Remember purchases of one day; the oldest give way."""
        order_N = np.argsort(user_N, kind="stable")
        user_N, product_N = user_N[order_N], product_N[order_N]
        rank_N = np.arange(len(user_N)) - np.searchsorted(user_N, user_N)
        place_N = (self._count_U[user_N] + rank_N) % _REMEMBERED
        self._product_UR[user_N, place_N] = product_N
        self._day_UR[user_N, place_N] = day
        np.add.at(self._count_U, user_N, 1)

    def bought_recently(
        self, user_N: IntArray, product_N: IntArray, day: int, window_days: int
    ) -> np.ndarray:
        """Whether the product is among the remembered purchases of the last `window_days` days."""
        same_NR = self._product_UR[user_N] == product_N[:, None]
        recent_NR = day - self._day_UR[user_N] <= window_days
        return (same_NR & recent_NR).any(axis=1)

    def draw_again(self, user_N: IntArray, rng: np.random.Generator) -> IntArray:
        """One remembered product of each user, -1 for who has bought nothing."""
        known_N = np.minimum(self._count_U[user_N], _REMEMBERED)
        place_N = (rng.random(len(user_N)) * known_N).astype(np.int64)
        return np.where(known_N > 0, self._product_UR[user_N, place_N], -1)


def _draw_users(
    config: LogConfig,
    catalog: Shelf,
    type_popularity_T: FloatArray,
    carriers: ProductPools,
    count: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    likes = len(LIKED_TYPE_SHARES)
    # Gumbel top-k: types without repetition, by popularity.
    keys_UT = np.log(type_popularity_T) + rng.gumbel(size=(count, len(type_popularity_T)))
    liked_type_UK = np.argsort(-keys_UT, axis=1, kind="stable")[:, :likes].astype(np.int16)

    def products_of(types: int) -> IntArray:
        return carriers.draw(liked_type_UK[:, :types].ravel(), rng).reshape(count, types)

    liked_variety_UK = catalog.variety_P[products_of(4)]
    disliked_variety_UK = catalog.variety_P[products_of(2)]
    liked_brand_UK = catalog.brand_P[products_of(4)]

    diet_chances = 1.0 / np.arange(1, len(FLAGS) + 1) ** _DIET_ZIPF
    first_bit, second_bit = rng.choice(len(FLAGS), (2, count), p=diet_chances / diet_chances.sum())
    diet_size_U = rng.choice(len(_DIET_SIZES), count, p=_DIET_SIZES)
    diet_U = np.where(diet_size_U > 0, 1 << first_bit, 0) | np.where(diet_size_U > 1, 1 << second_bit, 0)

    activity_U = rng.lognormal(0.0, 0.9, count)
    orders_U = config.orders_per_month * activity_U**0.5 * rng.lognormal(-0.3, 0.5, count)
    buyer_U = rng.random(count) >= config.users_without_purchases
    late_U = rng.random(count) < 0.2
    late_day_U = rng.integers(-config.history_days, config.days, count)
    return {
        "searches_U": activity_U,
        "orders_U": np.where(buyer_U, orders_U, 0.0),
        "first_order_day_U": np.where(late_U, late_day_U, -config.history_days).astype(np.int16),
        "liked_type_UK": liked_type_UK,
        "liked_variety_UK": liked_variety_UK.astype(np.int32),
        "disliked_variety_UK": disliked_variety_UK.astype(np.int32),
        "liked_brand_UK": liked_brand_UK.astype(np.int32),
        "diet_U": diet_U.astype(np.int32),
        "price_sensitivity_U": rng.lognormal(-0.1, 0.5, count).astype(np.float32),
        "click_tendency_U": rng.normal(size=count).astype(np.float32),
        "device_U": rng.choice(len(DEVICES), count, p=_DEVICE_SHARES).astype(np.int8),
        "store_U": rng.integers(0, config.stores, count).astype(np.int32),
    }
