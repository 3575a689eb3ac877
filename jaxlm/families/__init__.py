"""Model families: one config for all decoders, names of weights, rope scalings."""
