"""The terminal: what each command shows, asks and writes, from the first word read to the exit status.

One file per job; `freehold.cli` holds the options and calls them. Nothing below this package prints.
"""
