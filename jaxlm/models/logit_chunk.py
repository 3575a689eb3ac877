"""The number of targets whose logits exist at once: the head is read once for each chunk of them."""

import jax

from jaxlm.families.config import ModelConfig

LOGITS_BYTES = 64 * 2**20
"""Room for the float32 logits of one chunk of targets on a CPU."""
LOGITS_SHARE = 64
"""An accelerator gives them this part of its memory at most: where rows of a chunk are few, reading the head takes
longest."""
FILLS, LEAST_CHUNK = 2**22, 1024
"""Numbers of a product that keep all of an accelerator busy, 128 tiles of 128 x 256, and targets that repay reading the
head. A chunk's gradient in its hidden states has no more: fewer of larger chunks are padding alone, which is left
out."""


def head_chunk_of(config: ModelConfig) -> int:
    """Returns the targets whose logits exist at once: a power of two, so that it divides their number."""
    fits = 1 << max(6, (logits_bytes() // (4 * config.vocab_size)).bit_length() - 1)
    return min(fits, max(LEAST_CHUNK, 1 << (-(-FILLS // config.hidden_size) - 1).bit_length()))


def logits_bytes() -> int:
    """Returns the room for the float32 logits of one chunk of targets on the default device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return max(LOGITS_BYTES, int(stats.get("bytes_limit", 0)) // LOGITS_SHARE)
