"""What a protection is worth: what is in the file, and what a thief gets from it."""
