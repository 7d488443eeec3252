"""`python -m calotype`."""

from calotype.cli.main import main

main()
