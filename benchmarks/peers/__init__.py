"""The other libraries: a script that installs them, and their loops."""
