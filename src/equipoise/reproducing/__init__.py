"""The command `reproduce`: trains what a table or figure of the paper needs, and tells it."""
