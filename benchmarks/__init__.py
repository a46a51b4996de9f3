"""One question a file; each table's command and figures are in README.md."""
