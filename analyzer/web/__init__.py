"""HTTP: metrics, health, status and the live page, in a thread of its own."""
