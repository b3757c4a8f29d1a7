"""What the node needs of a backend: small Protocols with their duties, and the data that crosses them.

A backend passes the whole contract (`tests/contract/`) or it is not a backend.
"""
