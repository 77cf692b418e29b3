"""Pre-trained networks by other people, as their packages install them: replaced, compared, tuned, identified."""
