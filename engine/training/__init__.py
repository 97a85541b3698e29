"""One optimizer step in pure torch, readable without Lightning: each technique in a file of its own.

Imports `engine.errors`, `models` and `data`. Begin with `step`, which spells out the step from top to bottom and names
every other file here.
"""
