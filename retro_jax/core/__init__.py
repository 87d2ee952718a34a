"""Shared basics: the dimension alphabet, atomic files with checksums, paths, locks, progress bars and safe streams.

Read dimensions and files first. It imports nothing else of the project.
"""
