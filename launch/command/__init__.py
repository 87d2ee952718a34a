"""What every verb's command line needs: parsing, the settings that a verb reads, errors as messages, exit codes.

Read run, arguments, config_files, reads, explain, then processes (flags of several hosts) and engine (flags of Ray).
It imports no verb.
"""
