"""What is trained: the transformer, Hugging Face and GGUF models in and out, data, checkpoints."""

import os

# transformers serves only tokenizers and configs here, so its advice to install PyTorch is noise.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
