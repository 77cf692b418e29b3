"""A study: all that can be asked of a network's activations, in one call and on one page.

Begin with study.py; parts.py has what it does, in order. asked.py and samples.py hold what it is given; inputs.py,
forms.py and standing.py measure; result.py holds what was found and says it in three sentences; store.py keeps each
part, values.py writes it; page.py, page_tables.py and pictures.py show it, and figure.py draws it for a paper.
"""
