"""The sub-commands of ``reidguard``, one file each: parse, call the API, print."""
