"""What is trained: the transformer, Hugging Face and GGUF models in and out, data, checkpoints."""
