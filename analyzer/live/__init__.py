"""What people watch while a run goes on: history, frames to look at, splits by tag, targets, and the page's socket.

In: results and frames as the front hands them over, a batch at a time. Out: JSON and pixels for browsers, over
``/live``. Nothing here is waited for by the analysis, and nothing grows with the length of a run. It may import
``streamer`` and the rest of ``analyzer``.
"""
