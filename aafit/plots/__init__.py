"""Pages of one HTML file that need nothing beside it: what those of a study and of a suite have in common.

Begin with html.py, which fills the templates in templates/; svg.py draws what their script can move. style.py is how
the figures for papers look: their fonts, sizes, and lines that differ without colour.
"""
