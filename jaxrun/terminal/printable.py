"""Text of others as it may be shown: nothing in it that a terminal would obey or cannot take."""

from typing import Any

LONGEST = 1000
"""Characters of a line."""

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SURROGATES = range(0xD800, 0xE000)


def printable(text: str) -> str:
    """Returns a text with what has no glyph, such as control characters and halves of surrogate pairs, as escapes."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escape(one) for one in text)


def printable_data(data: Any) -> Any:
    """Returns JSON data whose texts, keys among them, are all `printable`."""
    if isinstance(data, dict):
        return {printable(key): printable_data(value) for key, value in data.items()}
    if isinstance(data, list):
        return [printable_data(value) for value in data]
    return printable(data) if isinstance(data, str) else data


def one_line(text: str) -> str:
    """Returns a text as one line that can be printed, the middle left out of one that is longer than `LONGEST`."""
    line = printable(" ".join(text.split()))
    half = (LONGEST - 1) // 2
    return line if len(line) <= LONGEST else f"{line[:half]}…{line[-half:]}"


def visible(text: str) -> str:
    """Returns a text of several lines with what a terminal would obey as escapes, line breaks and tabs aside."""
    return text.translate(_ESCAPES)


def _escape(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")


_ESCAPES = {
    code: _escape(chr(code))
    for code in (*range(0x20), *range(0x7F, 0xA0), *_BIDI, *_SURROGATES)
    if chr(code) not in "\n\t"
}
