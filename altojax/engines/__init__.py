"""Where tasks run: in this process, in processes of this host, on a Ray cluster, under Slurm."""
