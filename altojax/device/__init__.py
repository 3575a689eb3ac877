"""The device side: executor, steps, slots, batches, and how they are sharded over a mesh."""
