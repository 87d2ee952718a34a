"""What a stage is: a map over shards with a manifest, resumable; where shards are made (here or on Ray); the lock of a build.

Read run, known (the list of stages), engine, ray. It imports retro_jax; known imports each stage when it is made.
"""
