"""Drawn circuit boards: a data set without a download, for the quickstart and for tests.

Imports nothing of yolofit but `data.errors`. Begin with `synthetic`, which writes the data set; `drawing` draws a
board, `parts` its parts.
"""
