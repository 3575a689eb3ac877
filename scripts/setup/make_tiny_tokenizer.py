"""Writes the tokenizer of configs/tiny: the 256 bytes and four special tokens, with the ChatML template.

    python scripts/setup/make_tiny_tokenizer.py [FOLDER]

Tests and smoke runs use it with the random weights that configs/tiny/config.json describes; nothing is downloaded.
"""

from jaxrun.process.script import run_script

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import write_atomic

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_files() -> dict[str, str]:
    """Returns the text of each file by its name."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    settings = {
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 512,
        "pad_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }


def main() -> None:
    """Writes the files."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[2] / "configs" / "tiny")
    folder = parser.read().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in make_files().items():
        write_atomic(folder / name, text)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
