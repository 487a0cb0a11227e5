"""`python -m detect`: the command line without the console script."""

from detect.cli import main

if __name__ == "__main__":
    main()
