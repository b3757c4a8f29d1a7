"""Door: HTTP. One module per noun; each operation names its action and calls one use case."""
