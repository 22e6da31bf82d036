"""A soak: the whole program under faults for a stated time, and what must hold at its end.

In: settings of ``cxls soak``. Out: checks with their figures, samples over time, a plot. Real processes are started
(`children`), sampled from outside (`samples`), their outputs read and deleted as they are finished (`outputs`), and all
of it is judged by plain functions (`checks`).
"""
