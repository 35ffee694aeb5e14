"""One forward in bands of image rows, on one device to save memory or on several.

On several devices it is context parallelism: each holds a part of the sequence. The attention window makes a halo
exchange enough, rows of keys and values within r - 1 rows of a border, where others send the complete sequence.

plan      which rows a band has, which lane runs it, which rows of others its window reaches
schedule  the order of work of a lane in one attention layer, as data
run       executes the schedule: one thread a lane, in it one fiber a worker
simulate  replays the schedule with given times; replay is its engine
workers   what a worker does where the model attends
exchange  what the workers have published, and what crosses devices
transfer  copies between devices that overlap with work
memory    predicted peak memory
"""
