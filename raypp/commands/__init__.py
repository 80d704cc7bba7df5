"""What the verbs of the command line do that is not training: evaluate, inspect, show, report, the page of settings."""
