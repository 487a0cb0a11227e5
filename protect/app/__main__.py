"""Run `python -m protect.app` as the command `protect-app`."""

from protect.app.cli import main

if __name__ == "__main__":
    main()
