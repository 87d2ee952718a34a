"""Stage 4: the frozen encoder and the vector of every chunk.

Read directory (what an encoder's files say), tokenizer, weights, bert, stage. reference.py is the same in plain NumPy. It
imports chunks, tokens and stages.
"""
