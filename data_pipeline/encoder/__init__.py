"""Stage 4: the frozen encoder and the vector of every chunk.

Read directory (the settings in an encoder's files), tokenizer, weights, network, bert, dtype, stage. reference.py is the same in NumPy.
It imports chunks, tokens and stages.
"""
