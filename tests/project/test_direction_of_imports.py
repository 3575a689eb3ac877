"""Imports run one way: packages use packages, folders use layers below theirs, none reaches up or to its neighbour."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USES = {
    "pallas_kernels": set(),
    "jaxrun": set(),
    "jaxlm": {"jaxrun", "pallas_kernels"},
    "twistjax": {"jaxlm", "jaxrun"},
    "altojax": {"jaxlm", "jaxrun", "pallas_kernels"},
}
LAYERS = {
    "jaxrun": "terminal process files untrusted config store plots",
    "jaxlm": "families devices models quantised files data completion inventory",
    "twistjax": "config report calibration distillation training tickets comparison show_rows doctor cli __main__",
    "altojax": "adapters early_exit config estimates device packing report run inference cluster doctor cli __main__",
    "altojax.cluster": "scheduling tenancy engines task_estimates service simulation",
}
"""Layers of each package, lowest first: each imports only those before it."""

DOOR = {"prepare", "run_identity", "tuner"}
"""What altojax/cluster/ may import of altojax/run/."""


def entries(folder: Path) -> list[str]:
    """Returns the names in a folder, but for what Python compiled there."""
    kept = (path for path in folder.iterdir() if path.is_file() or any(path.rglob("*.py")) or any(path.rglob("*.j*")))
    return sorted(path.name for path in kept if path.name != "__pycache__")


def imports_of(package: str) -> set[tuple[str, str]]:
    """Returns (module, what it imports) for every import in a package's files, wherever it stands in them."""
    found = set()
    for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{path}: a relative import"
                found |= {(module, f"{node.module}.{alias.name}") for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {(module, alias.name) for alias in node.names}
    return found


@pytest.mark.parametrize("package", USES)
def test_a_package_imports_only_those_that_it_uses(package):
    known = {(module, name.split(".")[0]) for module, name in imports_of(package)}
    strangers = set(USES) - USES[package] - {package}
    assert not sorted((module, name) for module, name in known if name in strangers)
    assert USES[package] <= {name for _, name in known}


@pytest.mark.parametrize("package", LAYERS)
def test_a_layer_imports_only_layers_below_it(package):
    heights = {layer: height for height, layer in enumerate(LAYERS[package].split())}
    found = {name.removesuffix(".py") for name in entries(ROOT / package.replace(".", "/"))}
    assert found - {"__init__", "py.typed"} == set(heights)
    up, down = [], 0
    for module, name in imports_of(package):
        if module == package or not name.startswith(f"{package}."):
            continue
        start, end = (one.removeprefix(f"{package}.").split(".")[0] for one in (module, name))
        if start != end and end in heights:
            down += heights[end] < heights[start]
            up += [(module, name)] * (heights[end] > heights[start])
    assert not sorted(up) and down


def test_the_cluster_enters_a_run_by_its_door_alone():
    entered = {name.split(".")[2] for _, name in imports_of("altojax.cluster") if name.startswith("altojax.run.")}
    assert entered == DOOR


def test_a_folder_is_seen_at_a_glance():
    for package in USES:
        for folder in (ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())):
            found = entries(folder)
            assert len(found) <= 15 or folder.name == "__pycache__", f"{folder.relative_to(ROOT)}: {found}"
