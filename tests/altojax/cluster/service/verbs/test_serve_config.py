"""Every key of every engine can be written in a file or on the command line, and arrives as it was written."""

import json

import pytest

from altojax.cluster.engines.local import LocalEngine
from altojax.cluster.service.access import Access
from altojax.cluster.service.engine_config import HereSection, LocalSection, RaySection, SlurmSection
from altojax.cluster.service.verbs.serve import ServeConfig
from altojax.cluster.tenancy.grants import Roots
from jaxrun.config.config import load_config
from jaxrun.process.errors import UserError

WORKERS = {"worker": ["python", "-m", "altojax.cluster.engines.worker"], "grace_s": 30}
ENGINES = {
    LocalSection: {"kind": "local", "gpus": 8, **WORKERS},
    HereSection: {"kind": "here"},
    SlurmSection: {
        "kind": "slurm",
        "partition": "gpu",
        "account": "lab",
        "time_limit": "12:00:00",
        "warning_s": 120,
        "options": ["--cpus-per-task=16", "--mem=64G"],
        "gpus_per_node": 4,
        **WORKERS,
    },
    RaySection: {"kind": "ray", "address": "ray://head:10001", **WORKERS},
}


def read(folder, *overrides, **config):
    path = folder / "queue.yaml"
    path.write_text(json.dumps(config))
    return load_config(ServeConfig, path, overrides)


@pytest.mark.parametrize(("section", "keys"), ENGINES.items())
def test_every_key_of_an_engine_is_taken_from_a_file_and_from_the_command_line(tmp_path, section, keys):
    assert set(keys) == set(section.model_fields), "a key of the engine that this test does not write"
    written = read(tmp_path, engine=keys).engine
    given = read(tmp_path, *(f"engine.{key}={json.dumps(value)}" for key, value in keys.items())).engine
    assert type(written) is section and given == written
    for key, value in keys.items():
        found = getattr(written, key)
        assert (list(found) if isinstance(value, list) else found) == value


@pytest.mark.parametrize("kind", ["local", "here", "slurm", "ray"])
def test_an_engine_can_be_named_alone(tmp_path, kind):
    assert read(tmp_path, engine=kind).engine.kind == kind


@pytest.mark.parametrize("kind", ["sluurm", [], {"a": 1}, None, 3])
def test_a_kind_that_no_engine_has_is_one_line(tmp_path, kind):
    with pytest.raises(UserError, match=r"engine(\.kind)?: .*expected") as told:
        read(tmp_path, engine={"kind": kind})
    assert "\n" not in str(told.value)


def test_what_a_tenant_is_granted_is_taken_from_the_file(tmp_path):
    roots = {"read": ["/data/speech"], "write": ["/runs/speech"]}
    tenants = {"speech": {"users": [0], "roots": roots, "trust_remote_code": True}, "search": {"groups": [0]}}
    access = Access.on(LocalEngine(gpus=1), read(tmp_path, tenants=tenants).tenants)
    assert access.roots("speech") == Roots(**roots) and access.grants["speech"].trust_remote_code
    assert access.roots("search") is None and not access.grants["search"].trust_remote_code
    with pytest.raises(UserError, match=r"tenants\.speech\.roots\.read\.0.*absolute path"):
        read(tmp_path, tenants={"speech": {"roots": {**roots, "read": ["data"]}}})


@pytest.mark.parametrize("options", ["--mem=64G", [64], {"mem": "64G"}])
def test_options_are_a_list_of_texts(tmp_path, options):
    with pytest.raises(UserError, match="options"):
        read(tmp_path, engine={"kind": "slurm", "options": options})
