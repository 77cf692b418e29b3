"""Every picture of an activation, and the parts of HTML pages.

Begin with curves.py, the record of what a picture shows; panels.py draws it with matplotlib, svg.py as SVG.
activations.py draws the figure of a network. html.py fills the templates of pages, style.py has the fonts, lines and
colours of figures.
"""
