"""Valv: a node for secure storage and computation on sensitive bio-medical data."""

__version__ = "0.1.0"
