"""The commands of the command line: one table, and one module for each noun they deal with."""
