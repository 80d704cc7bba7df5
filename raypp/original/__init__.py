"""The command lines of the original scripts, translated."""
