"""A small page on this machine: type a query, see the products that it finds, by one way to search or by two.

It answers to this machine alone, and to nobody whose browser calls it by another name (DNS rebinding).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from experiments.reports.page import Tile, render
from experiments.reports.tiles import price_text, product_tile
from experiments.scoring.texts import Hit, ProductSearch

ADDRESS = "127.0.0.1"
_NAMES = (ADDRESS, "localhost")
_LONGEST_QUERY = 300
#: Titles and queries are text, whatever they hold: the page loads and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Column:
    """What one way to search finds; a `problem` instead where it cannot."""

    name: str
    tiles: tuple[Tile, ...] = ()
    problem: str | None = None


def search_server(
    searches: Mapping[str, ProductSearch], *, port: int, k: int, simulated: bool = False
) -> ThreadingHTTPServer:
    """A server of the page, which listens already; `serve_forever` makes it answer.

    Args:
        searches: ways to search, by the name that the page shows; their columns stand side by side.
        port: 0 takes any that is free.
        simulated: whether the products are; the page says so.

    Raises:
        OSError: the port is taken.
    """

    # Browsers open connections ahead, so each has a thread; encoders search one query at a time.
    one_at_a_time = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if self.headers.get("Host", "").rpartition(":")[0] not in _NAMES:
                self._answer(HTTPStatus.FORBIDDEN, "This page is called by 127.0.0.1 or localhost alone.")
            elif parts.path != "/":
                self._answer(HTTPStatus.NOT_FOUND, "There is one page, at /")
            else:
                query = parse_qs(parts.query).get("q", [""])[0].strip()[:_LONGEST_QUERY]
                with one_at_a_time:
                    text = search_page(query, searches, k=k, simulated=simulated)
                self._answer(HTTPStatus.OK, text)

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            kind = "html" if status == HTTPStatus.OK else "plain"
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Queries are nobody else's business."""

    return ThreadingHTTPServer((ADDRESS, port), Handler)


def search_page(query: str, searches: Mapping[str, ProductSearch], *, k: int, simulated: bool = False) -> str:
    """The page with what `query` finds; with the field alone for an empty one."""
    found: dict[str, list[Hit] | str] = {}
    for name, search in searches.items() if query else ():
        try:
            found[name] = search.find(query, k)
        except ValueError as problem:
            found[name] = str(problem)
    lists = {name: hits for name, hits in found.items() if not isinstance(hits, str)}
    columns = []
    for name, hits in found.items():
        if isinstance(hits, str):
            columns.append(Column(name, problem=hits))
        else:
            others = [other for title, other in lists.items() if title != name]
            columns.append(Column(name, _tiles(hits, others)))
    shared = None
    if len(lists) == 2:
        first, second = ({hit.product_id for hit in hits} for hits in lists.values())
        shared = f"{len(first & second)} of {max(len(first), len(second))} products are in both lists."
    return render(
        "search.html",
        query=query,
        columns=columns,
        shared=shared,
        simulated=simulated,
        products=len(next(iter(searches.values()))),
        names=list(searches),
    )


def _tiles(hits: Sequence[Hit], others: Sequence[Sequence[Hit]]) -> tuple[Tile, ...]:
    """The products with score, price and their place in the other list."""
    tiles = []
    for place, hit in enumerate(hits, start=1):
        lines = [hit.title or str(hit.product_id), price_text(hit.price), f"{place}., score {hit.score:.3f}"]
        for other in others:
            places = {found.product_id: at for at, found in enumerate(other, start=1)}
            at = places.get(hit.product_id)
            lines.append("only in this list" if at is None else f"place {at} in the other list")
        tiles.append(product_tile(hit.image, lines))
    return tuple(tiles)
