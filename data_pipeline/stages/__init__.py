"""What a stage is: a map over shards with a manifest, resumable; where shards are made (here or on Ray); the lock of a build.

Read run, engine, ray. It imports retro_jax alone.
"""
