"""Many picture files in turn: which ones, what is done already, whole outputs or none, and what to report."""
