"""What is known before a file is opened: collections, their checks, recipes, conditions."""
