"""Lightweight networks that take the place of a block: one file each, and the choice by name in `make`."""
