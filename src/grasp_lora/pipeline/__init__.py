"""The method as a story: adapters, merge, search, final run, evaluation, export."""
