"""Works through a list of jobs with the real peft and transformers; usage: load_adapter.py JOBS.json.

Each job is an object with `do`:

- ``make``: a random base from `config` into `base`, and a random adapter by `lora` (LoraConfig's arguments) on it into
  `adapter`; its logits on `tokens` go to `out`.
- ``adapter``: logits of `base` with `adapter` on it, by `attention` if that is given; fails if peft would leave any
  tensor out or miss one. Those of `base` alone go to `plain` if that is given.
- ``gradients``: of the mean loss of `tokens`, in each weight of `adapter` on `base`, by its name in the adapter's file;
  logits go beside them where `logits` names a file.
- ``answers``: writes the tokens that `base` with `adapter` on it adds greedily to each of `prompts`, at most `new` of
  them and up to one of `ends`, as JSON into `out`.
- ``plain``: logits of `base` alone, likewise.
- ``fields``: writes the adapter_config.json that peft makes of `lora` into `adapter`.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from quantised_bases import load_quantised
from transformers import AutoConfig, AutoModelForCausalLM


def main(path: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    jobs = json.loads(Path(path).read_text())
    for job in jobs:
        globals()[f"do_{job['do']}"](job)


def do_make(job: dict) -> None:
    config = AutoConfig.for_model(**job["config"])
    base = AutoModelForCausalLM.from_config(config).float().eval()
    base.save_pretrained(job["base"])
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **job["lora"])).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(job["adapter"])
    save_logits(model, job)


def do_adapter(job: dict) -> None:
    base = load(job["base"], job.get("attention"))
    if "plain" in job:
        save_logits(base, job, job["plain"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(base, job["adapter"]).eval()
    save_logits(model, job)


def do_gradients(job: dict) -> None:
    model = PeftModel.from_pretrained(load(job["base"]), job["adapter"], is_trainable=True).eval()
    tokens = torch.tensor(job["tokens"])
    found = model(tokens, labels=tokens)
    found.loss.backward()
    if "logits" in job:
        np.save(job["logits"], found.logits.detach().numpy())
    named = [(name.replace(".default", ""), one.grad) for name, one in model.named_parameters() if one.requires_grad]
    np.savez(job["out"], **{name: gradient.numpy() for name, gradient in named})


@torch.no_grad()
def do_answers(job: dict) -> None:
    model = PeftModel.from_pretrained(load(job["base"]), job["adapter"]).eval()
    kinds = {"max_new_tokens": job["new"], "eos_token_id": job["ends"], "pad_token_id": job["ends"][0]}
    made = []
    for prompt in map(torch.tensor, job["prompts"]):
        given = {"input_ids": prompt[None], "attention_mask": torch.ones_like(prompt)[None]}
        made.append(model.generate(**given, **kinds, do_sample=False)[0, len(prompt) :].tolist())
    Path(job["out"]).write_text(json.dumps(made))


def do_plain(job: dict) -> None:
    save_logits(load(job["base"], job.get("attention")), job)


def do_fields(job: dict) -> None:
    LoraConfig(task_type="CAUSAL_LM", **job["lora"]).save_pretrained(job["adapter"])


def load(path: str, attention: str | None = None) -> torch.nn.Module:
    said = Path(path) / "config.json"
    if said.exists() and (method := json.loads(said.read_text()).get("quantization_config")):
        return load_quantised(Path(path), method)
    folder, gguf = (str(Path(path).parent), {"gguf_file": Path(path).name}) if path.endswith(".gguf") else (path, {})
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, **gguf
    ).eval()


def save_logits(model: torch.nn.Module, job: dict, out: str | None = None) -> None:
    with torch.no_grad():
        np.save(out or job["out"], model(torch.tensor(job["tokens"])).logits.float().numpy())


if __name__ == "__main__":
    main(sys.argv[1])
