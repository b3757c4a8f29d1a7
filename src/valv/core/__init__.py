"""The rules, pure.

Each process with a lifecycle is two functions: `decide(state, command, facts)` gives events or a `Refusal`, and
`evolve(state, event)` gives the next state. Time, actor and new ids arrive in the command; facts are loaded data.
"""
