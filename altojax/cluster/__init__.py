"""Many tasks on many GPUs: scheduling, engines, the queue service, simulation."""
