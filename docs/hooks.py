"""For the site: our fences say what the tests do with a block, which its Markdown does not know."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The name of a file becomes the title of its block; how a console is played is left out."""
    named = re.sub(r"^```python (\S+)$", r'```python title="\1"', markdown, flags=re.MULTILINE)
    return re.sub(r"^```console .+$", "```console", named, flags=re.MULTILINE)
