"""Prints what transformers makes of strings, from the tokenizer it rebuilds out of a GGUF file.

python tokenize_gguf.py MODEL.gguf STRINGS.json
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

model, strings = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name)
chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
print(
    json.dumps(
        {
            "ids": [tokenizer(text)["input_ids"] for text in strings],
            "chat": tokenizer.apply_chat_template(chat, tokenize=False),
            "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        }
    )
)
