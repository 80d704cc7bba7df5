"""What a command shows in the terminal: progress while it runs, tables at the end."""
