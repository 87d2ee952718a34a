"""Stages: resumable maps over shards with a manifest; the engines that make shards; and the lock of a build.

Read run, known (the list of stages), engine, ray. It imports retro_jax; known imports each stage when it is made.
"""
