"""What every part uses: the dimension alphabet, whole files with checksums, paths, locks, progress bars and safe streams.

Read dimensions and files first. It imports nothing else of the project.
"""
