"""The command line: parses configurations, checks them, and explains mistakes in one line.

Imports `engine.loop` and everything below it. Begin with `cli`, the command line of fit, validate, plan and doctor;
`arguments` is that of the commands without a configuration. `explain` words the errors,
`first_configuration` what `engine.new` writes.
"""
