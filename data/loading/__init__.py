"""Makes batches from an index: which images, which process reads them, where they are kept, and how much RAM it takes.

Imports `data.indexing`, `data.augmentation` and `data.formats`. Begin with `dataset`, which turns a key into a sample.
`sampler` makes the keys, `loader` the batches, `ram_plan` the plan of RAM.
"""
