"""Loops that have no caller: outbox, runs, intake, scans, expiry, checkpoints, leases."""
