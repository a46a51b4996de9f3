"""The pages of results: hand-written text, and the modules that draw the tables in it."""
