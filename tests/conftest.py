"""Lets every test file import the makers of test data that lie beside this file."""
