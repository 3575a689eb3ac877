"""Damage to files: values of other types, missing or moved keys, bytes cut, flipped and inserted."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

LONG = "x" * 5000
TEXTS = (
    "",
    " ",
    ".",
    "..",
    "/",
    "~",
    "~nobody/x",
    "/dev/null",
    "\0",
    "a\0b",
    "\x1b[2J",
    "\ud800",
    "é\u2028",
    LONG,
    f"/{LONG}",
    "-1",
    "1e999",
)
NUMBERS = (0, -1, 1, 2, 7, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(10**400), 1e308, 5e-324, -0.0)

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers(-3, 40)
    | st.floats()
    | st.sampled_from(TEXTS)
    | st.text(max_size=6)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)

_WORDS = (
    b"\0",
    b"\n",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"[",
    b"{",
    b"}",
    b"]",
    b'"',
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"[" * 3000,
    b"\xff" * 8,
    b"\0" * 8,
    (2**63).to_bytes(8, "little"),
    (2**31).to_bytes(4, "little"),
)


@st.composite
def changed(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any] = ANYTHING) -> Any:
    """Plain data of which one to three places are other than they were: another value, none, or that of elsewhere."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            return draw(values)
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "repeat", "move", "wrap"))):
            case "replace":
                holder[key] = copy.deepcopy(draw(values))
            case "remove":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8) | st.sampled_from(TEXTS))] = holder.pop(key)
            case "repeat" if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[key]) for _ in range(draw(st.sampled_from((1, 3, 200)))))
            case "move":
                other, name = draw(st.sampled_from(places))
                holder[key] = copy.deepcopy(other[name])
            case "wrap":
                holder[key] = draw(st.sampled_from(([holder[key]], {"a": holder[key]}, str(holder[key]))))
    return tree


@st.composite
def damaged(draw: st.DrawFn, content: bytes, words: Sequence[bytes] = ()) -> bytes:
    """Bytes after one to four accidents; `words` are put in beside those that trouble every format."""
    data, accidents = bytearray(content), []
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((1, 2, 4, 8, 40, 400)))
        word = draw(st.sampled_from((*_WORDS, *words)))
        kind = draw(st.sampled_from(("cut", "drop", "flip", "repeat", "put", "put", "over")))
        match kind:
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + length]
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "repeat":
                data[at:at] = data[at : at + length]
            case "put":
                data[at:at] = word
            case "over":
                data[at : at + len(word)] = word
        accidents.append((kind, at, word[:20] if kind in ("put", "over") else length))
    return _Damaged(data, accidents)


class _Damaged(bytes):
    """Bytes that say what happened to them, not what they are."""

    accidents: list[Any]

    def __new__(cls, data: bytes, accidents: list[Any]) -> "_Damaged":
        one = super().__new__(cls, data)
        one.accidents = accidents
        return one

    def __repr__(self) -> str:
        return f"damaged by {self.accidents}" if len(self) > 200 else super().__repr__()


def as_json(tree: Any) -> bytes:
    """Writes plain data as Python does, halves of surrogate pairs included."""
    return json.dumps(tree, ensure_ascii=True).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
