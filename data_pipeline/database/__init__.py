"""A finished database: searching it, changing it, and checking it.

Read database, changed (what was removed and added), retokenized (its text in other tokens), searched (its parts, for many
queries at once), other_build (a build that searches it), copies, retriever, changes, check_files, check_content, provenance. It
imports the stages it reads.
"""
