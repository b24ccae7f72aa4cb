"""Builds the bundled base models from a procedural world; see README.md beside this file."""
