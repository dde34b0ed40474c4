"""Text from outside, made harmless for a terminal. Pure.

Ids and messages come from a web page, a file name, a model. A stored escape sequence must not
clear the screen, and a stored line break must not forge a line, when somebody looks a week later.
"""

from __future__ import annotations

import re

#: C0 and C1 controls, DEL, the bidirectional controls, the line and paragraph separators (which
#: some programs break lines at), and what no encoding can write: lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return `text` on one line that does nothing to a terminal: ESC becomes `\x1b`."""
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    # Python's own spelling: \n, \x1b, \u202e.
    return ascii(found[0])[1:-1]
