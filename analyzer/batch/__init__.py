"""Files analysed again in shards: who does what, what is done, and one table and report of it all.

A shard is a process that shares nothing with the others but a folder: under a job array, GNU parallel or by hand.
"""
