"""`busline doctor`: everything that can be wrong, before it is."""
