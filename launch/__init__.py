"""launch: the commands, with their flags, exit codes and error messages; the work is in data_pipeline and retro_jax.

Read command/, then a verb such as train or build. sweep/ runs many of them. hosts/ has the scripts for SLURM, TPU
VMs, GKE and a GPU box. It may import everything.
"""
