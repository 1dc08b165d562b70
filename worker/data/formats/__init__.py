"""Readers of data sets that strangers made: from one file to plain columns, checked on the way."""
