"""The site check: each module looks at one part of what a run needs, and says what to do where it is not in order."""
