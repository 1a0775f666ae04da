"""Codecs measured on images by real files, and reports of it: what eval.py runs."""
