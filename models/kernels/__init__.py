"""All Triton kernels, and `triton_support`, which decides whether they run on a device.

Imports nothing of yolofit. Begin with `triton_support`. Each other file holds the kernels of one operation and imports
Triton, so import it only where `fused_kernels_work` returns True.
"""
