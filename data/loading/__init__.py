"""From an index to batches: which images, read by whom, kept where, at what cost in RAM.

Imports `data.indexing`, `data.augmentation` and `data.formats`. Begin with `dataset`, which turns a key into a sample;
`sampler` makes the keys, `loader` the batches, `ram_plan` the plan of memory.
"""
