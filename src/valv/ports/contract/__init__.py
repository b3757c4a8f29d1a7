"""Contract tests, shipped so that a stranger's backend can be held to the same contract as the built-in ones."""
