"""What a run leaves behind for people to look at: tables and pictures; reads files, knows no trainer.

Imports `engine.validation`, `engine.machine` and `engine.memory`. Begin with `html`, the report of a run; `facts` are
its numbers, `style` its colors and fonts, and each other file is a kind of picture. The files that begin with
``dataset`` are about a data set rather than a run.
"""
