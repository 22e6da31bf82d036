"""Workers in other processes and on other hosts: frames out, results back, every frame accounted for.

In: packed frames from the front's queue. Out: the same outcomes as of a worker in the front's own process. One protocol
over ZeroMQ, ROUTER at the front and DEALER at each worker: a worker says how many frames it can take, the front keeps
which frames it holds, and gives them to another when it dies. It may import ``streamer`` and the rest of ``analyzer``.
"""
