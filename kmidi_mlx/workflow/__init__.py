"""The whole life cycle as one pipeline of kmidi's own commands, each a process of its own.

config.py      what is asked for
steps.py       which commands that is, what they need and leave
memory.py      batches that fit into the memory there is
journal.py     what was done, from what; so that nothing is done twice
runner.py      one step: its processes, their output, their peak of memory
report.py      everything that was measured, as Markdown with pictures
"""
