"""`python -m tfpvae`."""

import sys

from tfpvae import cli

if __name__ == "__main__":
    sys.exit(cli.main())
