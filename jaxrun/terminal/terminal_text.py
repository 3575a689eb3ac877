"""Texts of several lines that others wrote, as a terminal may show them."""

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {
    code: chr(code).encode("unicode_escape").decode("ascii")
    for code in (*range(0x20), *range(0x7F, 0xA0), *_BIDI)
    if chr(code) not in "\n\t"
}


def visible(text: str) -> str:
    """Returns a text with what a terminal would obey as escapes, line breaks and tabs aside."""
    return text.translate(_ESCAPES)
