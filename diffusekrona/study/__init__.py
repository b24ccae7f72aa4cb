"""Studies: a declared grid of training runs, run cell by cell, told in one page.

grid.py       what a study is: arms, axes, values; YAML
declared.py   the studies that come with the package
cell.py       one cell: train, draw, score
engines.py    many cells: on this machine, or with Ray
results.py    what came out, as tables
page.py       and as a page
"""
