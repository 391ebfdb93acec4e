"""Packages show what they should, and only that."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from experiments.marketplace.world.package_images import draw_package
from experiments.marketplace.world.package_shapes import package_of

DICE = np.array([0.5, 0.5, 0.5, 0.5, 0.9, 0.5])  # the fifth: this package does not write its variety


def _pixels(catalog, product):
    return np.asarray(draw_package(catalog, product, DICE, 96), np.int16)


def _changed(catalog, product, **values):
    changed = {}
    for name, value in values.items():
        column = getattr(catalog, name).copy()
        column[product] = value
        changed[name] = column
    return dataclasses.replace(catalog, **changed)


def test_every_product_has_a_readable_image_at_its_path(written):
    paths = written.table("products")["image"].to_pylist()
    assert len(set(paths)) == written.config.products
    for path in paths[:30]:
        with Image.open(written.folder / path) as image:
            image.load()
            assert (image.mode, image.size) == ("RGB", (48, 48))
    assert len(list((written.folder / "images").iterdir())) == written.config.products


def test_a_flag_that_the_title_leaves_out_is_on_the_package(world):
    catalog = world.catalog
    product = int(np.flatnonzero(catalog.flags_P & ~catalog.title_flags_P)[0])
    hidden = catalog.flags_P[product] & ~catalog.title_flags_P[product]
    without = _changed(catalog, product, flags_P=catalog.flags_P[product] & ~hidden)
    assert np.abs(_pixels(catalog, product) - _pixels(without, product)).sum() > 0


def test_the_variety_shows_as_a_colour_even_where_no_word_says_it(world):
    catalog = world.catalog
    names = catalog.assortment.varieties
    brown = _changed(catalog, 0, variety_P=names.index("chocolate"))
    green = _changed(catalog, 0, variety_P=names.index("spinach"))
    assert np.abs(_pixels(brown, 0) - _pixels(green, 0)).max() > 40


def test_price_quality_and_title_leave_no_trace_on_the_package(world):
    catalog = world.catalog
    other = _changed(catalog, 0, price_P=99.0, quality_P=5.0, title_flags_P=0)
    np.testing.assert_array_equal(_pixels(catalog, 0), _pixels(other, 0))


def test_two_brands_have_different_packages(world):
    other = _changed(world.catalog, 0, brand_P=(world.catalog.brand_P[0] + 1) % len(world.catalog.brands))
    assert np.abs(_pixels(world.catalog, 0) - _pixels(other, 0)).max() > 40


@pytest.mark.parametrize("pixels", [48, 96, 224])
def test_every_shape_has_its_own_outline_at_any_size(world, pixels):
    shapes = sorted({kind.shape for kind in world.catalog.assortment.types})
    outlines = {shape: package_of(shape, pixels).body.tobytes() for shape in shapes}
    assert len(set(outlines.values())) == len(shapes) == 12
    for shape in shapes:
        package = package_of(shape, pixels)
        outside = np.asarray(package.label)[np.asarray(package.body) == 0]
        assert not outside.any(), f"the label of a {shape} must stay on it"
