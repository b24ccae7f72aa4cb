"""Scores of generated pictures: encoders, pictures, statistics, reports.

`diffusekrona.evaluate` is the program; the studies use the same rooms.
"""
