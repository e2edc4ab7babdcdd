"""The reference, generated from the code: configuration, commands, events and metrics as Markdown, manual pages, an
example.

`python -m gateway.cli.reference docs` writes what is committed below docs/. `python -m gateway.cli.reference package
DIR` writes the manual pages, the shell completions and the example that packages install.
"""
