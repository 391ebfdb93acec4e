"""Feeds of Google Merchant Center and Shopify become products; what cannot be compared is refused."""

import gzip
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.datasets.feeds.feed_texts import coarse_categories, parse_price, text_of_html
from experiments.datasets.feeds.merchant_feed import import_merchant_feed
from experiments.datasets.feeds.shopify import import_shopify
from features.inputs.tables import InputError
from features.inputs.validation import validate

TSV = (
    "id\ttitle\tdescription\tlink\timage link\tprice\tsale price\tbrand\tproduct type\titem group id\tcolor\n"
    "A1\tMug, blue\t<p>Holds &frac12; litre</p>\thttps://x/a1\thttps://x/a1.jpg\t12.99 USD\t9.99 USD\tAcme\t"
    "Home > Kitchen > Mugs\tA\tblue\n"
    "A2\tMug, red\t\thttps://x/a2\thttps://x/a2.jpg\t11.00 USD\t\tAcme\tHome > Kitchen > Mugs\tA\tred\n"
    "B\tTowel\tSoft\thttps://x/b\t\t\t\t\tHome > Bath\t\t\n"
)
RSS = """<?xml version="1.0"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>
<item><g:id>A1</g:id><title>Mug, blue</title>
<description><![CDATA[<p>Holds &frac12; litre</p>]]></description>
<link>https://x/a1</link><g:image_link>https://x/a1.jpg</g:image_link>
<g:image_link>https://x/2.jpg</g:image_link>
<g:price>12.99 USD</g:price><g:sale_price>9.99 USD</g:sale_price><g:brand>Acme</g:brand>
<g:product_type>Home &gt; Kitchen &gt; Mugs</g:product_type><g:item_group_id>A</g:item_group_id>
<g:color>blue</g:color></item>
<item><g:id>A2</g:id><title>Mug, red</title><g:image_link>https://x/a2.jpg</g:image_link>
<g:price>11.00 USD</g:price><g:brand>Acme</g:brand>
<g:product_type>Home &gt; Kitchen &gt; Mugs</g:product_type>
<g:item_group_id>A</g:item_group_id><g:color>red</g:color></item>
<item><g:id>B</g:id><title>Towel</title><description>Soft</description>
<g:product_type>Home &gt; Bath</g:product_type></item>
</channel></rss>"""
ATOM = (
    RSS.replace('<rss version="2.0"', '<feed xmlns="http://www.w3.org/2005/Atom"')
    .replace("<channel>", "")
    .replace("</channel></rss>", "</feed>")
    .replace("<item>", "<entry>")
    .replace("</item>", "</entry>")
)
SHOPIFY = (
    "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,Variant "
    "SKU,"
    "Variant Price,Image Src,Image Position,Variant Image,Status\n"
    'mug,Mug,"<p>Holds\n<b>tea</b></p>",Acme,Home > Kitchen,Mug,"a, b",true,Colour,Blue,M1,12.99,https://x/1.jpg,1,'
    "https://x/blue.jpg,active\n"
    "mug,,,,,,,,,Red,M2,11.00,https://x/2.jpg,2,,\n"
    "mug,,,,,,,,,,,,https://x/3.jpg,3,,\n"
    "towel,Towel,,,Home > Bath,,,true,Title,Default Title,T1,20,,,,draft\n"
)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def products(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "products.parquet").to_pylist()


@pytest.mark.parametrize(
    ("name", "text"),
    [("feed.tsv", TSV), ("feed.txt.gz", TSV), ("feed.xml", RSS), ("feed.xml.gz", RSS), ("atom.xml", ATOM)],
)
def test_tsv_rss_and_atom_give_the_same_products(tmp_path, name, text):
    out = tmp_path / "out"
    summary = import_merchant_feed(written(tmp_path, name, text), out)
    assert products(out) == [
        {
            "product_id": "A1",
            "title": "Mug, blue",
            "aisle": "Kitchen",
            "price": 12.99,
            "brand": "Acme",
            "description": "Holds ½ litre",
            "category": "Home > Kitchen > Mugs",
            "image_url": "https://x/a1.jpg",
            "group_id": "A",
            "sale_price": "9.99 USD",
            "color": "blue",
        },
        {
            "product_id": "A2",
            "title": "Mug, red",
            "aisle": "Kitchen",
            "price": 11.0,
            "brand": "Acme",
            "description": None,
            "category": "Home > Kitchen > Mugs",
            "image_url": "https://x/a2.jpg",
            "group_id": "A",
            "sale_price": None,
            "color": "red",
        },
        {
            "product_id": "B",
            "title": "Towel",
            "aisle": "Bath",
            "price": None,
            "brand": None,
            "description": "Soft",
            "category": "Home > Bath",
            "image_url": None,
            "group_id": None,
            "sale_price": None,
            "color": None,
        },
    ]
    assert (summary.products, summary.currency, summary.without_price, summary.aisles) == (3, "USD", 1, 2)
    assert validate(out, max_bad_share=0, threads=1).passed


def test_variants_of_a_group_collapse_to_its_id_with_the_lowest_price(tmp_path):
    import_merchant_feed(written(tmp_path, "feed.tsv", TSV), tmp_path / "out", variants="collapse")
    rows = [
        (row["product_id"], row["title"], row["price"], row["variants"]) for row in products(tmp_path / "out")
    ]
    assert rows == [("A", "Mug, blue", 11.0, 2), ("B", "Towel", None, 1)]


def test_prices_of_several_currencies_are_refused_until_one_is_chosen(tmp_path):
    path = written(tmp_path, "feed.tsv", TSV.replace("11.00 USD", "11.00 EUR"))
    with pytest.raises(InputError, match=r"several currencies: USD \(1\), EUR \(1\).*--currency"):
        import_merchant_feed(path, tmp_path / "out")
    summary = import_merchant_feed(path, tmp_path / "out", currency="USD")
    assert [row["price"] for row in products(tmp_path / "out")] == [12.99, None, None]
    assert "1 prices are not in USD" in summary.notes[0]
    with pytest.raises(InputError, match="has no price in CHF; it has USD, EUR"):
        import_merchant_feed(path, tmp_path / "out", currency="CHF")


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("feed.tsv", TSV.replace("12.99 USD", "cheap"), r"line 2: price 'cheap' is no price"),
        ("feed.tsv", TSV.replace("A2\t", "\t"), r"line 3 has no id"),
        ("feed.tsv", TSV.replace("id\ttitle", "sku\tname", 1), r"line 1: the header must name id and title"),
        ("feed.tsv", TSV.splitlines()[0] + "\n", r"holds no products"),
        ("feed.xml", RSS[:600], r"cannot be read to its end"),
        ("feed.xml", RSS.replace("<g:id>B</g:id>", ""), r"entry 3 has no id"),
    ],
)
def test_a_broken_feed_is_named_with_its_place_and_nothing_is_written(tmp_path, name, text, advice):
    with pytest.raises(InputError, match=advice):
        import_merchant_feed(written(tmp_path, name, text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_id_that_occurs_twice_is_kept_once_and_counted(tmp_path):
    path = written(tmp_path, "feed.tsv", TSV.replace("A2\t", "A1\t"))
    summary = import_merchant_feed(path, tmp_path / "out")
    assert [row["title"] for row in products(tmp_path / "out")] == ["Mug, blue", "Towel"]
    assert summary.repeated_ids == 1


@pytest.mark.parametrize("newer", [False, True])
def test_a_shopify_handle_is_a_product_with_its_lowest_price(tmp_path, newer):
    text = SHOPIFY
    if newer:
        for old, new in [
            ("Handle", "URL handle"),
            ("Body (HTML)", "Description"),
            ("Variant SKU", "SKU"),
            ("Variant Price", "Price"),
            ("Image Src", "Product image URL"),
            ("Variant Image", "Variant image URL"),
        ]:
            text = text.replace(old, new, 1)
    import_shopify(written(tmp_path, "products.csv", text), tmp_path / "out")
    first, second = products(tmp_path / "out")
    assert (first["product_id"], first["title"], first["description"]) == ("mug", "Mug", "Holds tea")
    assert (first["price"], first["variants"], first["aisle"], first["brand"]) == (11.0, 2, "Kitchen", "Acme")
    assert (second["product_id"], second["price"], second["variants"]) == ("towel", 20.0, 1)
    assert second["status"] == "draft"
    assert validate(tmp_path / "out", max_bad_share=0, threads=1).passed


def test_shopify_variants_kept_apart_carry_their_options_and_their_sku(tmp_path):
    import_shopify(written(tmp_path, "products.csv", SHOPIFY), tmp_path / "out", variants="keep")
    rows = [
        (row["product_id"], row["title"], row["price"], row["group_id"], row["image_url"])
        for row in products(tmp_path / "out")
    ]
    assert rows == [
        ("M1", "Mug Blue", 12.99, "mug", "https://x/blue.jpg"),
        ("M2", "Mug Red", 11.0, "mug", "https://x/1.jpg"),
        ("T1", "Towel", 20.0, "towel", None),
    ]
    path = written(tmp_path, "products.csv", SHOPIFY.replace(",M2,", ",,"))
    import_shopify(path, tmp_path / "out", variants="keep")
    assert [row["product_id"] for row in products(tmp_path / "out")] == ["mug/Blue", "mug/Red", "towel"]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (SHOPIFY.replace("mug,Mug,", "mug,,"), r"line 3: the first row of 'mug' has no title"),
        (SHOPIFY.replace("towel,Towel", ",Towel"), r"line 6 has no handle"),
        (SHOPIFY.replace("Variant Price", "Cost"), r"must name variant price or price"),
        (SHOPIFY + "x,y\n", r"line 7 has 2 fields, but the header names 16"),
    ],
)
def test_a_broken_shopify_export_is_named_with_its_line(tmp_path, text, advice):
    with pytest.raises(InputError, match=advice):
        import_shopify(written(tmp_path, "products.csv", text), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12.99 USD", (12.99, "USD")),
        ("USD12.99", (12.99, "USD")),
        ("1,299.00 USD", (1299.0, "USD")),
        ("1.299,00 EUR", (1299.0, "EUR")),
        ("1.299.000 EUR", (1299000.0, "EUR")),
        ("12,99", (12.99, None)),
        ("1,299", (1299.0, None)),
        ("1.125 USD", (1.125, "USD")),
        ("1'299.50 CHF", (1299.5, "CHF")),
        ("0", (0.0, None)),
    ],
)
def test_prices_are_read_with_either_mark_and_their_currency(text, expected):
    assert parse_price(text) == expected


@pytest.mark.parametrize("text", ["free", "-1 USD", "1.2.3", "USD 1 EUR", "1,29,99", "USD", "1e5"])
def test_what_is_no_price_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_price(text)


def test_html_becomes_the_text_that_a_browser_shows():
    assert text_of_html("a<br>b &lt;c&gt; <style>p{}</style><!-- no --><p>d</p>e") == "a b <c> d e"
    assert text_of_html("5 < 6 & 7") == "5 < 6 & 7"


def test_the_aisle_is_the_first_level_at_which_products_differ():
    assert coarse_categories([("A", "B"), ("A", "C"), ("A",)]) == ["B", "C", "A"]
    assert coarse_categories([("A",), ("A",), ()]) == ["A", "A", None]
    assert coarse_categories([(), ()]) == [None, None]


def test_the_commands_import_and_print_the_counts(tmp_path):
    feed, export = written(tmp_path, "feed.xml", RSS), written(tmp_path, "products.csv", SHOPIFY)
    for command in (
        ["merchant-feed", str(feed), str(tmp_path / "a"), "--variants", "collapse"],
        ["shopify", str(export), str(tmp_path / "b")],
    ):
        result = CliRunner().invoke(app, ["import", *command])
        assert result.exit_code == 0, result.output
        assert "2" in result.output
        assert "image_url" in result.output
