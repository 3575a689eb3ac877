"""Model files: Hugging Face and GGUF in, safetensors out, tokenizers, checkpoints."""
