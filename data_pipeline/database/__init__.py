"""A finished database: searching it, changing it, and checking it.

Read database, searched (its parts, for many queries at once), retriever, changes, check_files, check_content, provenance.
It imports the stages it reads.
"""
