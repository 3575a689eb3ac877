"""GGUF files: read within bounds, with their tokenizers and quantised tensors."""
