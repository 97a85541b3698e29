"""Translates what people train with today into yolofit's configuration. Nothing foreign is run.

Imports `engine.errors` and `models`. Begin with `translate`, which holds the table of keys; `ultralytics_arguments` and
`python_calls` find the arguments in commands, YAML files and Python code.
"""
