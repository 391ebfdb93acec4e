"""The console that all commands print on: a name of a folder, a title or an extra is shown as it is.

rich reads `[spark]` as a style and `:apple:` as a picture: "pip install 'dashclip-ranker[spark]'" would lose
its extra, and a product "Milk [organic]" its last word.
"""

import re
from typing import Any

import rich.console
from rich.text import Text

#: What rich would take for a tag, and the backslashes before it, of which an odd number makes it plain text.
_TAG = re.compile(r"(\\*)(\[[a-z#/@][^\[]*?\])")
#: The styles that this program writes.
_OURS = re.compile(r"\[/?((bold )?(red|green|yellow|cyan)|bold|dim)?\]")


class Console(rich.console.Console):
    """Reads our few styles as markup and nothing else; a sentence that goes to a file is one line.

    Example:
        >>> Console(width=80).print("[bold]wrote[/bold] runs[old]/report.html, :apple:")
        wrote runs[old]/report.html, :apple:
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As rich does, with all tags but ours taken for text."""
        markup = settings.get("markup")
        if self._markup if markup is None else markup:
            text = _TAG.sub(_as_text, text)
        return super().render_str(text, **settings)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **settings: Any) -> None:
        """As rich does; where nobody reads on a terminal, no line of text is broken at a width."""
        if soft_wrap is None and not self.is_terminal:
            soft_wrap = all(isinstance(shown, str) for shown in objects)
        super().print(*objects, soft_wrap=soft_wrap, **settings)


def _as_text(found: re.Match[str]) -> str:
    backslashes, tag = found.groups()
    if len(backslashes) % 2 or _OURS.fullmatch(tag):
        return found[0]
    return f"{backslashes}{backslashes}\\{tag}"
