"""What stands in the fields of feeds: text with HTML tags, prices with a currency, paths of categories."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser

_PRICE = re.compile(
    r"(?:(?P<before>[A-Z]{3}|[$€£¥])\s*)?(?P<amount>\d[\d.,' \u00a0]*)\s*(?P<after>[A-Z]{3}|[$€£¥])?",
    re.ASCII,
)
#: Elements after which a new line of text begins, and those whose text nobody reads.
_BLOCKS = frozenset(
    ["br", "p", "div", "li", "ul", "ol", "tr", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6"]
)
_UNREAD = frozenset(["script", "style"])


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unread = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._unread += tag in _UNREAD
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._unread = max(0, self._unread - (tag in _UNREAD))
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self.parts.append(data)


def text_of_html(html: str) -> str:
    """What a browser shows, in one line.

    >>> text_of_html("<p>Soft&nbsp;&amp; <b>warm</b></p><script>x()</script><ul><li>wool</li></ul> 3 < 4")
    'Soft & warm wool 3 < 4'
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return " ".join("".join(reader.parts).split())


def parse_price(text: str) -> tuple[float, str | None]:
    """Amount and currency: `12.99 USD`, `USD 12.99` and `12,99 €` are prices, `1,299` is 1299.

    The last of `.` and `,` marks the fraction unless exactly three digits follow it and it may part
    thousands.

    >>> parse_price("1,299.50 USD"), parse_price("€ 1.299,50"), parse_price("15")
    ((1299.5, 'USD'), (1299.5, '€'), (15.0, None))

    Raises:
        ValueError: it is no price.
    """
    found = _PRICE.fullmatch(text.strip())
    if found is None or (found["before"] and found["after"]):
        raise ValueError(f"{text!r} is no price such as '12.99 USD'")
    amount = re.sub(r"[' \u00a0]", "", found["amount"]).rstrip(".,")
    mark = amount[max(amount.rfind("."), amount.rfind(","))] if re.search("[.,]", amount) else ""
    whole, _, fraction = amount.rpartition(mark) if mark else (amount, "", "")
    if mark and (amount.count(mark) > 1 or (len(fraction) == 3 and mark == ",")):
        whole, fraction = amount, ""
    if not re.fullmatch(r"\d+|\d{1,3}([.,]\d{3})+", whole):
        raise ValueError(f"{text!r} is no price such as '12.99 USD'")
    return float(f"{re.sub('[.,]', '', whole)}.{fraction or 0}"), found["before"] or found["after"]


def coarse_categories(paths: Sequence[Sequence[str]]) -> list[str | None]:
    """The aisle of each product: its category at the first level at which products differ.

    >>> coarse_categories([("Home", "Kitchen", "Pans"), ("Home", "Bath"), ()])
    ['Kitchen', 'Bath', None]
    """
    deepest = max(map(len, paths), default=0)
    for level in range(deepest):
        names = [path[level] if level < len(path) else (path[-1] if path else None) for path in paths]
        if len({name for name in names if name is not None}) > 1:
            return names
    return [path[-1] if path else None for path in paths]


def category_path(text: str) -> tuple[str, ...]:
    """Levels parted by `>`: `Home > Kitchen` gives two."""
    return tuple(level.strip() for level in text.split(">") if level.strip())
