"""`python -m launch.sweep ...` is `retro sweep ...`."""

import sys

from launch.sweep.verb import main

if __name__ == "__main__":
    sys.exit(main())
