"""What an output stream can show."""

from __future__ import annotations

import os
from typing import Any, TextIO


def is_terminal(stream: Any) -> bool:
    """Whether a bar can move and colours show on `stream`; a dumb terminal is a log."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") not in ("dumb", "unknown")
    except (AttributeError, ValueError):  # not a file, or a closed one
        return False


def printable(text: str) -> str:
    """`text` with control characters as "?": what a file says must not steer a terminal. Newlines are such, too."""
    return "".join(c if c.isprintable() else "?" for c in text)


def encodable(text: str, stream: TextIO) -> str:
    """`text` with what the stream's encoding lacks as "?"."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
