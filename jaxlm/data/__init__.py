"""From files to token rows: sources, formats, loss masks, orders, buckets and packing.

A row (sources) becomes a `Document` (formats, turns), a document tokens with loss targets (template, encoding), and
these `Example`s make a `Dataset` (dataset). Nothing that is read is ever executed.
"""
