"""The data path: encryption on the way in, the one decrypting reader, the seal, the mount."""
