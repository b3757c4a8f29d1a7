"""Who holds the keys: the `keyd` process, its folder, its root key, and the client that the other processes use."""
