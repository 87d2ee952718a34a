"""Implementations of attention, chosen by name with `config.model.attention`.

Read known (what an implementation declares, how one is added and chosen), xla (every device), flash (TPUs: decoder
self-attention without scores in memory), flash_gpu (the same for GPUs), slow (the twin that tests compare every
implementation with), trial (a kernel's first run on a device). It imports config, core, `models.positions`,
`models.placement` and `models.layers`.
"""
