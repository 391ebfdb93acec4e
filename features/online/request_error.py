"""The one error of a scoring request: which field, what came, what to do.

It lies below `serving`, since reading a request's features is where most of its faults show; every server
turns it into a client error, never into one of its own.
"""

from typing import Literal

ClientStatus = Literal[400, 413]

# What came is echoed to whoever asked: a pasted document would drown the sentence.
LONGEST_ECHO = 120


class RequestError(ValueError):
    """A request that cannot be scored as it came.

    Attributes:
        field: where it is wrong, as the request spells it: `user_id`, `candidate_columns.price`.
        came: what was there, in words (a value, a type, a length), shortened to a readable length.
        advice: what must hold or what to do, as the end of a sentence: "send one number for each candidate".
        status: 400, or 413 where the request is merely too large.

    `str(RequestError("price", "NaN", "send finite numbers"))` is "price: NaN came; send finite numbers".
    """

    def __init__(self, field: str, came: str, advice: str, *, status: ClientStatus = 400) -> None:
        self.field = field
        self.came = came if len(came) <= LONGEST_ECHO else came[: LONGEST_ECHO - 1] + "…"
        self.advice = advice
        self.status: ClientStatus = status
        super().__init__(f"{self.field}: {self.came} came; {self.advice}")

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.field, self.came, self.advice, self.status)


def _restore(field: str, came: str, advice: str, status: ClientStatus) -> RequestError:
    return RequestError(field, came, advice, status=status)
