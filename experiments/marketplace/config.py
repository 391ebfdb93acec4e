"""Sizes and effects of simulated logs. Every default is explained in docs/marketplace.md."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from features.artifacts import StrictModel

Size = Literal["tiny", "small", "medium", "large"]
#: The preset: what the candidates of a slate are (docs/marketplace.md says how the presets differ).
Candidates = Literal["mixed", "retrieval"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class ClickModel(StrictModel):
    """Coefficients of the click logit, in log-odds; one field per term of docs/marketplace.md.

    The defaults are those of the preset mixed.
    """

    intercept: float = -3.1
    grade_0: float = -2.0
    grade_1: float = -0.25
    grade_2: float = 0.8
    #: Each stated facet (brand, variety, flag) that the product has, whatever the grade.
    facet_match: float = 0.35
    taste: float = 0.9
    quality: float = 0.9
    #: Times the user's price sensitivity times log(price / median price of the type).
    relative_price: float = -0.5
    positions: tuple[float, float, float, float, float] = (0.0, -0.5, -0.85, -1.1, -1.3)
    #: In the order of `shoppers.DEVICES`.
    devices: tuple[float, float, float] = (0.1, 0.0, -0.2)
    user: float = 0.5
    evening: float = 0.15
    repeat_purchase: float = 0.8


class TasteModel(StrictModel):
    """What a user's likes and dislikes are worth, in units that both clicks and purchases multiply."""

    liked_type: float = 0.6
    liked_variety: float = 0.85
    disliked_variety: float = -0.8
    #: A product that has a flag the user's diet asks for, and one that lacks all of them.
    diet_met: float = 0.8
    diet_missed: float = -0.35
    liked_brand: float = 0.7


class LogConfig(StrictModel):
    """A simulated log, whatever shop it is of: how many people, how long, and which effects."""

    size: Size | Literal["custom"] = "custom"
    candidates: Candidates = "mixed"
    seed: Annotated[int, Field(ge=0)] = 0
    users: Annotated[int, Field(ge=10)]
    impressions: Annotated[int, Field(ge=100)]
    start: date = date(2024, 1, 1)
    #: Days with impressions, the test week included.
    days: Annotated[int, Field(ge=8)] = 217
    #: The last days, on which the best reachable AUC is measured.
    test_days: Count = 7
    #: Purchases start this many days before the first impression.
    history_days: Annotated[int, Field(ge=1)] = 84
    stores: Count = 60
    #: Share of products that first appear on a day drawn from the whole period.
    new_product_share: Share = 0.25
    users_without_purchases: Share = 0.33
    orders_per_month: Annotated[float, Field(gt=0)] = 2.0
    conversion_rate: Share = 0.12
    clicks: ClickModel = ClickModel()
    taste: TasteModel = TasteModel()

    @model_validator(mode="after")
    def _period_holds_a_test_week(self) -> Self:
        if self.test_days >= self.days:
            raise ValueError(f"test_days ({self.test_days}) must be fewer than days ({self.days})")
        return self


class MarketplaceConfig(LogConfig):
    """A marketplace: its log and how large its shop is. `preset` gives the named sizes and presets."""

    images: bool = True
    image_pixels: Annotated[int, Field(ge=48, le=512)] = 96
    products: Annotated[int, Field(ge=100)]
    queries: Annotated[int, Field(ge=100)]
    llm_labels: Count
    human_labels: Count

    @classmethod
    def preset(cls, size: Size, candidates: Candidates = "mixed", **changes: Any) -> Self:
        """A size and a preset, with any field replaced: `preset("tiny", seed=3).products` is 300."""
        named = {"size": size, "candidates": candidates, "clicks": CLICKS[candidates]}
        return cls.model_validate({**named, **_SIZES[size], **changes})


class CatalogueConfig(LogConfig):
    """A log on real products, queries and grades, which bring their own numbers."""

    @classmethod
    def preset(cls, size: Size, candidates: Candidates = "mixed", **changes: Any) -> Self:
        """People, impressions and days of a size, with any field replaced."""
        named = {"size": size, "candidates": candidates, "clicks": CLICKS[candidates]}
        log = {name: value for name, value in _SIZES[size].items() if name in LogConfig.model_fields}
        return cls.model_validate({**named, **log, **changes})


#: How people click in each preset.
CLICKS: dict[Candidates, ClickModel] = {
    "mixed": ClickModel(),
    "retrieval": ClickModel(
        intercept=-3.8,
        taste=1.3,
        quality=0.6,
        relative_price=-1.2,
        positions=(0.0, -0.6, -1.0, -1.3, -1.5),
        repeat_purchase=1.5,
    ),
}
_SIZES: dict[Size, dict[str, int]] = {
    "tiny": {
        "products": 300,
        "users": 1_000,
        "queries": 600,
        "impressions": 12_000,
        "llm_labels": 4_000,
        "human_labels": 800,
        "days": 67,
        "stores": 10,
    },
    "small": {
        "products": 5_000,
        "users": 20_000,
        "queries": 8_000,
        "impressions": 400_000,
        "llm_labels": 120_000,
        "human_labels": 12_000,
    },
    "medium": {
        "products": 50_000,
        "users": 200_000,
        "queries": 40_000,
        "impressions": 5_000_000,
        "llm_labels": 800_000,
        "human_labels": 60_000,
        "stores": 300,
    },
    "large": {
        "products": 400_000,
        "users": 2_000_000,
        "queries": 120_000,
        "impressions": 50_000_000,
        "llm_labels": 4_000_000,
        "human_labels": 200_000,
        "stores": 1_000,
    },
}
