"""Text of others never commands a terminal."""

from jaxrun.terminal.printable import visible


def test_what_a_terminal_obeys_is_escaped_and_all_else_stays():
    assert visible("a\x1b[2Jb\x07\x9b31m\r\u202ec\ud800") == r"a\x1b[2Jb\x07\x9b31m\r\u202ec\ud800"
    assert visible("one\n\ttwo é 漢 😀") == "one\n\ttwo é 漢 😀"
