"""Where bytes rest: one module per backend, each passing `valv.ports.contract.storage`."""
