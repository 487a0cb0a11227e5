"""One run of the command line: options, many files in turn, what is written and what is reported."""
