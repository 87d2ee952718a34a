"""hosts: one script for each place that trains: SLURM, Cloud TPU VMs, GKE, one GPU box.

Read common.sh, which the scripts share, then gpu_box.sh with train_loop.sh; slurm.sh submits slurm.sbatch, tpu_vm.sh runs
tpu_worker.sh and gpu_box.sh on every worker, gke.sh applies jobset.yaml as gke.py fills it in. cost.py writes the cost note.
The Python files run before anything is installed: they import the standard library, and gke.py also yaml.
"""
