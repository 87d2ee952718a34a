"""A finished database: searching it, changing it, and checking it.

Read database, retriever, changes, check_files, check_content, provenance. It imports the stages it reads.
"""
