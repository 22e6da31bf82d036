"""The terminal view of a running analysis: asking for its ``/status``, reading it, drawing it."""
