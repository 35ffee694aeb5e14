"""`python dev.py card`: what only a real card can answer, in parts that end alone.

`__main__` starts each part (`parts`) as a process of its own with a time limit (`supervise`) and saves what it found
(`results`, `page`) before the next one starts.
"""
