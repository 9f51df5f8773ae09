"""Claims of papers as experiments: one file for each claim, and what runs them and tells what was found."""
