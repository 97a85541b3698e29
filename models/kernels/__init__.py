"""Everything that is written in Triton, and the switch that says whether it is used.

Imports nothing of yolofit. Begin with `switch`. Each other file holds the kernels of one operation and imports
Triton, so it is imported only where `switch` says that Triton works.
"""
