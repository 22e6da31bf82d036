"""A worker that is given an address and never says a word."""

import time

time.sleep(600)
