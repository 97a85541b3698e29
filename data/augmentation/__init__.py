"""Varies an image and its boxes and brings them to the network's input size.

Imports nothing of yolofit but `data.errors`. Begin with `augment`, the training recipe from top to bottom; validation
uses `letterbox` instead.
"""
