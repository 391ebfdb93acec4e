"""The page of `dashclip search`: what it finds, over HTTP, and whom it answers."""

import http.client
import shutil
import subprocess
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from embeddings.tables.lsa import embed_lsa
from experiments.cli import app
from experiments.scoring.search_page import search_page, search_server
from experiments.scoring.texts import ProductSearch, VectorSource
from tests.embeddings.small_catalog import title_of, write_small_catalog
from tests.experiments.reports.page_reader import assert_whole_and_self_contained

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def searches(tmp_path_factory) -> dict[str, ProductSearch]:
    """LSA vectors and words; a title with a tag, a price, and a product without a picture."""
    data = write_small_catalog(tmp_path_factory.mktemp("shop") / "data", without_image=[2])
    products = pq.read_table(data / "products.parquet")
    titles = products["title"].to_pylist()
    titles[4] = "Elmiri <script>alert(1)</script> Purple Ring"
    products = products.set_column(products.schema.get_field_index("title"), "title", pa.array(titles))
    products = products.append_column("price", pa.array([1.25 * n for n in range(len(products))]))
    pq.write_table(products, data / "products.parquet")
    embed_lsa(data, data.parent / "lsa", dim=8)
    return {
        "LSA": ProductSearch(data, VectorSource.open_any(data.parent / "lsa")),
        "words": ProductSearch(data, None),
    }


@pytest.fixture
def port(searches) -> Iterator[int]:
    with search_server(searches, port=0, k=5) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def asked(port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_a_query_finds_the_same_products_as_in_the_terminal(searches, port):
    status, text = asked(port, f"/?q={quote('red circle')}")
    assert status == 200
    reader = assert_whole_and_self_contained(text)
    for search in searches.values():
        hits = search.find("red circle", 5)
        for place, hit in enumerate(hits, start=1):
            assert f"{hit.title} price {hit.price:.2f} {place}., score {hit.score:.3f}" in reader.text
    first, second = ({hit.product_id for hit in search.find("red circle", 5)} for search in searches.values())
    assert f"{len(first & second)} of 5 products are in both lists." in reader.text
    assert reader.text.count("only in this list") == 10 - 2 * len(first & second)


def test_a_query_that_one_way_does_not_know_gets_a_sentence_and_the_other_its_products(searches):
    reader = assert_whole_and_self_contained(search_page(title_of(7), searches, k=5))
    assert "the table has no vector of the query" in reader.text
    assert f"{title_of(7)} price 8.75 1., score 1.000" in reader.text
    assert "both lists" not in reader.text


def test_titles_and_queries_are_text_and_nothing_else(searches):
    page = search_page('"><script>x</script>purple ring', searches, k=24)
    assert "<script>" not in page
    reader = assert_whole_and_self_contained(page)
    assert "Elmiri <script>alert(1)</script> Purple Ring" in reader.text


def test_a_product_without_a_picture_says_so(searches):
    reader = assert_whole_and_self_contained(search_page(title_of(2), searches, k=1))
    assert "no picture" in reader.text


def test_simulated_products_are_called_simulated(searches):
    assert "Simulated data: 24 products" in search_page("", searches, k=5, simulated=True)


def test_without_a_query_there_is_the_field_alone(port):
    status, text = asked(port, "/")
    assert status == 200
    reader = assert_whole_and_self_contained(text)
    assert "24 products, by LSA and by words" in reader.text
    assert "Simulated" not in reader.text
    assert "score" not in reader.text


def test_it_answers_to_this_machine_under_its_own_names_alone(searches, port):
    assert asked(port, "/?q=x", Host=f"shop.example:{port}")[0] == 403
    assert asked(port, "/?q=x", Host=f"localhost:{port}")[0] == 200
    assert asked(port, "/etc/passwd")[0] == 404
    with search_server(searches, port=0, k=5) as server:
        assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("words", [[], ["milk", "--page"], ["milk", "--against", "words"]])
def test_a_query_or_a_page_but_not_both(searches, tmp_path, words):
    done = CliRunner().invoke(app, ["search", str(tmp_path), *words])
    assert done.exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_a_browser_shows_the_products_and_runs_no_title(port, tmp_path):
    """What a browser makes of the page, with its policy and its parser, not what ours makes of it."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    address = f"http://127.0.0.1:{port}/?q={quote('purple ring')}"
    shown = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr[-500:]
    assert "Elmiri &lt;script&gt;alert(1)&lt;/script&gt; Purple Ring" in shown.stdout
    assert shown.stdout.count('src="data:image/') >= 5
    subprocess.run([*command, f"--screenshot={tmp_path / 'page.png'}", address], timeout=120, check=True)
    with Image.open(tmp_path / "page.png") as page:
        assert len(set(page.convert("RGB").getdata())) > 100, "the browser painted a blank page"
