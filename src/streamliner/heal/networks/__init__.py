"""Lightweight networks, one file each."""
