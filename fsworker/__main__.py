"""``python -m fsworker``."""

from fsworker.cli import main

if __name__ == "__main__":
    main()
