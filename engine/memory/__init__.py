"""Memory as a quantity to measure, limit and simulate. Knows neither networks nor Lightning nor the training step.

Imports `engine.errors` only. Begin with `units` and `probe`, which measures; `allocator` keeps torch within a budget,
`guard` notices spills, `storages` follows tensors that have no data. What a training step needs is `engine.planning`.
"""
