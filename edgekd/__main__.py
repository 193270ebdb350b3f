"""`python -m edgekd` is the `edgekd` command."""

from edgekd.cli.main import main

if __name__ == "__main__":
    main()
