"""Translates command lines of the original scripts."""
