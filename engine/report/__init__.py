"""What a run or a data set looks like: tables and pictures, drawn from files and plain values, without a trainer.

Imports `engine.validation`, `engine.machine` and `engine.memory`. Begin with `html`, the report of a run. `facts` has
its numbers and warnings, `style` its colors and fonts, and every other file draws one kind of picture. The files that
begin with ``dataset`` describe a data set.
"""
