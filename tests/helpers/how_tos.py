"""The code that pages of docs/extend/ show."""

import re
from pathlib import Path
from types import SimpleNamespace

PAGES = Path(__file__).parents[2] / "docs" / "extend"


def shown(page: str) -> SimpleNamespace:
    """Runs what a page shows in Python, and returns what that defines."""
    code = re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert code, f"{page} shows no Python"
    names: dict = {"__name__": page}
    exec(compile("\n".join(code), page, "exec"), names)
    return SimpleNamespace(**names)
