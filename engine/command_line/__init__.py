"""The command line: parses configurations, checks them, and explains mistakes in one line.

Imports `engine.loop` and everything below it. Begin with `cli`, the command line of fit, validate, plan and doctor;
`arguments` serves the commands without a configuration. `explain` words the errors, and `first_configuration` writes
the file of `engine.new`.
"""
