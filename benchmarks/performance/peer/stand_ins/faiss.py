"""Stands in for faiss, which retro_pytorch imports beside its model and which the model does not use."""
