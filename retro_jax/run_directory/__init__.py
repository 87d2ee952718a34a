"""The files of a run: config, versions, checkpoints, and the rules by which a second start continues or is refused.

Read directory, checkpoints, whole, keeping, identity, restart. Only checkpoints.py and keeping.py import orbax. It imports
config, core, data, models, parallel, and the state of train.
"""
