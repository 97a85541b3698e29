"""What Lightning calls: the module, the data module, the callbacks, and the processes of a run.

Imports everything in `engine` except the command line. Begin with `module`, which connects the parts and computes
nothing itself. Only `command_line`, this folder, `run` and `machine.devices` know Lightning.
"""
