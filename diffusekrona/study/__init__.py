"""Studies: a grid of training runs, run cell by cell and reported on one page.

grid.py             a study: arms, axes, values; YAML
builtin_studies.py  the studies that come with the package
cell.py             one cell: train, draw, score
engines.py          many cells: on this machine, or with Ray
results.py          results as tables
page.py             results as a page
"""
