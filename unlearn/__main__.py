"""`python -m unlearn`: the command line without the console script."""

from unlearn.cli import main

if __name__ == "__main__":
    main()
