"""Sources of text as the config names them: which files are read and which are left out, and their documents.

Read listing, walk, readers. It imports formats, packages and stages.
"""
