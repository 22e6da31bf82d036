"""``python -m cxls``."""

from cxls.cli import main

if __name__ == "__main__":
    main()
