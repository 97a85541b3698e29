"""Memory in bytes: measure it, limit it, simulate it. Knows neither networks nor Lightning nor the training step.

Imports `engine.errors` only. Begin with `units` and `probe`, which measures. `allocator` keeps torch within a budget,
`guard` notices spills, `storages` follows tensors without data, `overhead` counts what is not a tensor.
"""
