"""What no feature schema may say."""

import pytest
from pydantic import ValidationError

from features.schema import DenseFeature, FeatureConfig, SparseFeature

USER = SparseFeature(name="user", column="user_id")


@pytest.mark.parametrize("column", ["clicked", "click_timestamp"])
@pytest.mark.parametrize("kind", [DenseFeature, SparseFeature])
def test_a_feature_that_reads_the_label_is_refused(kind, column):
    feature = kind(name="peek", column=column)
    with pytest.raises(ValidationError, match=f"'peek' reads {column!r} .* which is the label"):
        FeatureConfig(**{"sparse": (USER,), "dense": (), kind.__name__[:-7].lower(): (feature,)})
    of_products = kind(name="peek", source="products", column=column)  # any attribute of a product may be
    FeatureConfig(**{"sparse": (USER,), "dense": (), kind.__name__[:-7].lower(): (of_products,)})


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ((USER, USER), "must be unique, but .'user'. appear more than once"),
        ((SparseFeature(name="clicked", column="user_id"),), ".'clicked'. are reserved"),
        (
            (SparseFeature(name="month", source="timestamp", column="month"),),
            "'month' asks for 'month' of the timestamp; it has hour_of_day, day_of_week",
        ),
    ],
)
def test_names_that_cannot_be_are_refused(features, why):
    with pytest.raises(ValidationError, match=why):
        FeatureConfig(sparse=features)
