"""Use cases: load facts, ask the core, append events, react. The only place that enforces."""
