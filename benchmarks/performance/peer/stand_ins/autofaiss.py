"""Stands in for autofaiss, which retro_pytorch imports beside its model and which the model does not use."""

build_index = None
