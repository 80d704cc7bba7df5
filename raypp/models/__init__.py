"""Pretrained models and tokenizers: finding, checking, loading and saving them, and making a student of them."""
