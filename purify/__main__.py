"""`python -m purify`: the command line without the console script."""

from purify.cli import main

if __name__ == "__main__":
    main()
