"""Implementations of attention, chosen by name with `config.model.attention`.

Read known (what an implementation declares, how one is added and chosen), xla (the default), slow (the twin that tests
compare every implementation with). It imports config, core and `models.positions`.
"""
