"""From files to token rows: sources, formats, loss masks, orders, buckets and packing.

A row (sources) becomes a `Document` (formats, turns), a document tokens with loss targets (template, encoding), and
these `Example`s make a `Dataset` (dataset). Nothing that is read is ever executed.
"""

from jaxlm.data.batching.buckets import bucket_length, default_buckets
from jaxlm.data.batching.order import order
from jaxlm.data.batching.packing import Packed, pack
from jaxlm.data.config import DataConfig, DataSource
from jaxlm.data.dataset import Dataset, dataset_of, load_datasets, load_splits, load_validation
from jaxlm.data.documents import Chat, Document, Pair, Text
from jaxlm.data.encoding import Encoder, Prompt
from jaxlm.data.examples import Example, Skipped, check_vocabulary
from jaxlm.data.prompting import Asking, asking_of
from jaxlm.data.text_rows import TextRows, read_text, read_validation_text

__all__ = [
    "Asking",
    "Chat",
    "DataConfig",
    "DataSource",
    "Dataset",
    "Document",
    "Encoder",
    "Example",
    "Packed",
    "Pair",
    "Prompt",
    "Skipped",
    "Text",
    "TextRows",
    "asking_of",
    "bucket_length",
    "check_vocabulary",
    "dataset_of",
    "default_buckets",
    "load_datasets",
    "load_splits",
    "load_validation",
    "order",
    "pack",
    "read_text",
    "read_validation_text",
]
