"""Checks that every transport passes, and what a transport's author needs to run them. Free of pytest.

Unstable until 1.0: the checks grow with the contract in `busline.transports.base`.
"""
