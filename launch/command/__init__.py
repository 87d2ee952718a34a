"""What every verb's command line needs: parsing, the settings that a verb reads, errors as messages, exit codes.

Read run, arguments, config_files, reads, explain, then processes (flags of several hosts), engine (flags of Ray) and steps
(verbs as the steps of a larger command).
It imports no verb.
"""
