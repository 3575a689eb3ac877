"""A word is one type: no two classes that a program is made of have one name."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ("jaxlm", "jaxrun", "pallas_kernels")


@pytest.mark.parametrize("program", ["altojax", "twistjax"])
def test_no_class_has_the_name_of_another(program):
    homes = defaultdict(list)
    for package in (program, *SHARED):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(homes) > 150
    assert not {name: found for name, found in homes.items() if len(found) > 1}
