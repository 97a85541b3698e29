"""How a picture and its boxes are varied and brought to the network's input size.

Imports nothing of yolofit but `data.errors`: it takes pictures (`picture`) and returns pictures. Begin with `augment`,
the training recipe from top to bottom; `letterbox` is what validation does instead.
"""
