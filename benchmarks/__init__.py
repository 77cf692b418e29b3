"""What is said of speed, to be measured again: one command a file."""
