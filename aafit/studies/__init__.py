"""The study of a network's activations: all analyses in one call, and their page.

Begin with study.py, which runs the analyses in order. config.py and samples.py hold the inputs; inputs.py, shapes.py
and scores.py measure; result.py holds the results and the verdict; store.py saves each part; families.py
compares families of activations. page.py and page_tables.py write the page, figures.py has figures for a paper.
"""
