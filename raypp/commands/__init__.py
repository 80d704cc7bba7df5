"""The subcommands that do not train (evaluate, inspect, show, report), and the page of settings."""
