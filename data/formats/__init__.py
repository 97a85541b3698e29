"""Reads images, label files and descriptions of data sets into plain values.

Imports nothing of yolofit but `data.errors`. Begin with `dataset_yaml`, which says where the files are. `labels`,
`coco` and `voc` read boxes, `image` reads pixels.
"""
