"""Families of transforms g_a and g_s, one file each."""
