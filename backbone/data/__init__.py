"""From files to token rows: sources, formats, loss masks, orders, buckets and packing.

A row (sources) becomes a `Document` (formats, turns), a document tokens with loss targets (template, encoding), and
these `Example`s make a `Dataset` (dataset). Nothing that is read is ever executed.
"""

from backbone.data.asking import Asking, asking_of
from backbone.data.buckets import bucket_length, default_buckets
from backbone.data.config import DataConfig, DataSource
from backbone.data.dataset import Dataset, load_datasets, load_validation
from backbone.data.documents import Chat, Document, Pair, Text
from backbone.data.encoding import Encoder, Prompt
from backbone.data.examples import Example, Skipped, check_vocabulary
from backbone.data.order import order
from backbone.data.packing import Packed, pack
from backbone.data.stream import TextRows, read_text, read_validation_text

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
    "default_buckets",
    "load_datasets",
    "load_validation",
    "order",
    "pack",
    "read_text",
    "read_validation_text",
]
