"""The analyser: frames in, decisions, peaks and parameters out.

In: batches of frames (compressed views with the header of their series) and a model bundle.
Out: one ``FrameResult`` a frame, running estimates, and everything published: result files,
Prometheus metrics, HTTP.
May import: ``streamer``.
"""
