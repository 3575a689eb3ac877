"""Configs of small twistjax runs."""

from pathlib import Path

TEXT = "".join(f"{n} and {n + 1} are {2 * n + 1}, which is more than {n * n % 7}.\n" for n in range(400))


def write_twist_config(folder: Path, rest: str) -> Path:
    """Writes text and a config over a random model of two layers; `rest` is the YAML of all but model and data."""
    (folder / "text.txt").write_text(TEXT)
    path = folder / "twist.yaml"
    path.write_text(f"""
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true}}
data: {{train: {folder}/text.txt, max_length: 32, validation_samples: 4}}
{rest}""")
    return path
