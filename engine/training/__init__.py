"""One optimizer step in pure torch, without Lightning; each technique has its own file.

Imports `engine.errors`, `models` and `data`. Begin with `step`, which shows the step from top to bottom and names every
other file.
"""
