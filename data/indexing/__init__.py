"""The content of a split: every image path and box, in packed arrays, and facts about them.

Imports `data.formats`. Begin with `index`: `listing` finds the files, `scan` reads them into a `scan_table`, and
`index_file` keeps the result on disk. `dataset_facts` counts the content.
"""
