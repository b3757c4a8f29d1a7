"""Where runs run: a privileged launcher that starts sandboxes, and the client by which the node asks it.

`launcher` is the server, `run` one run's life, `box` its bubblewrap command line, `seccomp` its system call filter,
`cgroup` and `watch` its limits, `outbox` and `stream` the way of its outputs, `client` and `sandbox` the node's side,
`lease` the question "does the permit still stand?". `docs/processes.md` has the picture.
"""
