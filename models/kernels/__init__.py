"""Everything that is written in Triton, and `switch`, which says whether it works on this machine.

Imports nothing of yolofit. Begin with `switch`. Each other file holds the kernels of one operation and imports
Triton, so it is imported only where `switch` says that Triton works.
"""
