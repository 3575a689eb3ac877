"""docs/coming-from.md has every name of another tool that a config of altojax knows, with what stands for it here."""

import re
from pathlib import Path

from altojax.config.search.space import TrialConfig
from altojax.config.tune_config import TuneConfig
from jaxrun.config.config_keys import Ours, keys_of

PAGE = (Path(__file__).parents[3] / "docs" / "coming-from.md").read_text()


def table() -> list[str]:
    """The rows of the table: names that stand for the same key in one row, sections in the order of the config."""
    places = {key.section: key.dotted.rpartition(".")[0] for key in reversed([*keys_of(TuneConfig)])}
    names: dict[tuple[str, str], list[str]] = {}
    for section, place in sorted(places.items(), key=lambda one: (one[1].count("."), one[1])):
        if section is TrialConfig:
            continue  # its names are those of the search space
        for name, told in section.foreign_names.items():
            key, note = Ours(told) if isinstance(told, str) else told
            dotted = f"{place}.{key}" if place and key else key
            names.setdefault((dotted, note), []).append(name)
    return [
        f"| {', '.join(f'`{name}`' for name in dict.fromkeys(of_key))} | {f'`{key}`' if key else ''} | {note} |"
        for (key, note), of_key in names.items()
    ]


def test_the_table_has_every_foreign_name_that_configs_know():
    rows = [line for line in PAGE.partition("## All names")[2].splitlines() if re.match(r"\| `\w+`", line)]
    assert rows == table()
    assert len(rows) > 50


def test_keys_that_the_page_recommends_exist():
    keys = {key.dotted for key in keys_of(TuneConfig)}
    leaves = {key.rpartition(".")[2] for key in keys}
    recommended = re.findall(r"→ `([\w.]+)", PAGE)
    assert len(recommended) > 10
    assert not [key for key in recommended if key not in keys and key not in leaves]
