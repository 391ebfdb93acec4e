"""Reads a page as a browser would: what is open, what it loads, what it says."""

from html.parser import HTMLParser


class PageReader(HTMLParser):
    """Feeds on a page; `left_open` and `sources` tell whether it is whole and self-contained."""

    def __init__(self, page: str):
        super().__init__()
        self.left_open, self.sources, self.links, self.anchors = [], [], [], set()
        self.tags, self.words = set(), []
        self.feed(page)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        self.sources += [found["src"]] if "src" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.anchors |= {found["id"]} if "id" in found else set()
        if tag not in ("meta", "img", "link", "br", "input"):
            self.left_open.append(tag)

    def handle_endtag(self, tag):
        assert self.left_open.pop() == tag

    def handle_data(self, words):
        self.words.append(words)


def assert_whole_and_self_contained(page: str) -> PageReader:
    """Every tag closed, no script, every picture inside, every link to a place of the page."""
    reader = PageReader(page)
    assert reader.left_open == []
    assert "script" not in reader.tags
    assert all(
        source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,", "data:image/jpeg;base64,"))
        for source in reader.sources
    )
    assert {link.removeprefix("#") for link in reader.links} <= reader.anchors
    return reader
