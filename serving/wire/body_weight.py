"""How much work a body is, told without decoding it: servers and clients pick a lane by it. No torch here."""

#: Above either a request is a large one: some 5 ms of work.
LARGE_CANDIDATES, LARGE_BYTES = 512, 96 * 2**10


def is_large(content: bytes | bytearray | memoryview) -> bool:
    """Whether a body is one of the large ones, told without decoding it.

    Of JSON the ids between the first brackets after "candidates" are counted. Arrow needs 8 bytes an id.
    A client that hides how many it sends is only answered in the other lane.
    """
    if len(content) > LARGE_BYTES:
        return True
    if len(content) < 2 * LARGE_CANDIDATES:
        return False
    content = bytes(content)
    start = content.find(b'"candidates"')
    if start < 0 or content.lstrip()[:1] != b"{":
        return len(content) > 8 * LARGE_CANDIDATES
    return content.count(b",", start, content.find(b"]", start)) >= LARGE_CANDIDATES
