"""`python -m protect`: the command line without the console script."""

from protect.cli import main

if __name__ == "__main__":
    main()
