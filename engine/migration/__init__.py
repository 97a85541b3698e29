"""Translates what people train with today into yolofit's configuration, without running any foreign code.

Imports `engine.errors` and `models`. Begin with `translate`, which has the table of keys. `ultralytics_arguments` and
`python_calls` find the arguments in commands, YAML files and Python code.
"""
