"""Engines that run tasks: in this process, as processes of this host, on a Ray cluster, under Slurm."""
