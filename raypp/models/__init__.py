"""Pretrained models and tokenizers: found, checked, loaded, cut to a student, saved."""
