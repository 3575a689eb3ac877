"""Language models in JAX: the transformer, Hugging Face and GGUF files in and out, data, meshes, checkpoints."""

import os

# transformers serves only tokenizers and configs here, so its advice to install PyTorch is noise.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
