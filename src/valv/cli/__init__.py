"""Door: the `valv` command. User commands speak HTTP with a token, operator commands call the node's own functions."""
