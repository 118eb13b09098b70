"""Kinds of exported files, one module each."""
